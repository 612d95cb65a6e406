"""The tokens by which this user's programs own clusters at shared schedulers, read from their recovery files."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dispy.errors import RecoveryError
from dispy.recovery.book import Book, ClusterShared, decode
from dispy.recovery.file import SUFFIX, default_folder


def shared_clusters() -> Iterator[ClusterShared]:
    """What the recovery files in the default place say of such clusters, also those of programs that still run."""
    for path in sorted(default_folder().glob(f"*{SUFFIX}")):
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    continue
                book = Book(decode(file.read()).entries)
        except (OSError, RecoveryError):
            continue  # gone meanwhile, or of another kind: nothing of ours is in it
        yield from book.shared.values()
