"""Writes down for a scheduler what a later program needs to fetch its results: its clusters and the nodes it leased.

It writes rarely, never for a job. A default place that cannot be written is said once, and the program runs on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from dispy.errors import RecoveryError, SettingsError
from dispy.logs import logger
from dispy.model import ComputationId, ComputationSpec, ProcessId
from dispy.recovery.book import (
    AnyEntry,
    ClusterLeft,
    ClusterNoted,
    ClusterOver,
    ClusterShared,
    ComputationStored,
    NodeNoted,
    ProgramBegun,
)
from dispy.recovery.file import RecoveryFile, new_path, prune
from dispy.recovery.journal import Journal


class Recorder:
    """The recovery files of one scheduler: one in the default place, or wherever its clusters want one.

    `use` may be called from any thread, the rest belongs to the loop's.
    """

    def __init__(self, begun: ProgramBegun) -> None:
        self._begun = begun
        self._clusters: dict[ComputationId, ClusterNoted] = {}
        self._shared: dict[ComputationId, ClusterShared] = {}
        self._nodes: dict[ProcessId, NodeNoted] = {}
        self._files: dict[Path | None, RecoveryFile] = {}
        """By the path that was asked for; None: the default place."""
        self._default_failed = False
        self._journals: dict[Path, Journal] = {}

    def use(self, wanted: str | os.PathLike[str] | None) -> None:
        """Write into this file from now on (None: one in the default place, unless there is a file already).

        Raises:
            SettingsError: the file that was asked for cannot be written or holds what must not be lost.
        """
        if wanted is None:
            if not self._files and not self._default_failed:
                self._use_default()
            return
        path = Path(wanted).expanduser().absolute()
        if path in self._files:
            return
        try:
            self._files[path] = RecoveryFile.create(path, self._snapshot())
        except RecoveryError as error:
            raise SettingsError(f"recover_file: {error}") from None
        except OSError as error:
            raise SettingsError(f"recover_file: {path} cannot be written: {error.strerror}") from None

    def _use_default(self) -> None:
        try:
            prune()
            self._files[None] = RecoveryFile.create(new_path(), self._snapshot())
        except (RecoveryError, OSError) as error:
            self._default_failed = True
            why = error.strerror if isinstance(error, OSError) else str(error)
            logger.warning(
                "no recovery file can be written (%s): if this program is killed, results that nodes have for it are "
                "lost; name a place with recover_file=…, or say recover_file=False",
                why,
            )

    def journal(self, wanted: str | os.PathLike[str] | None) -> Journal:
        """Where durable clusters that use this file keep what they need.

        Raises:
            SettingsError: there is no file, or nothing can be written beside it.
        """
        file = self._file(wanted)
        if file is None:
            raise SettingsError("durable: there is no recovery file to keep jobs in; name a place with recover_file=…")
        journal = self._journals.get(file.path)
        if journal is None:
            try:
                journal = self._journals[file.path] = Journal(file.store)
            except OSError as error:
                raise SettingsError(f"durable: {file.store} cannot be written: {error.strerror}") from None
        return journal

    def computation_stored(self, wanted: str | os.PathLike[str] | None, stored: ComputationStored) -> None:
        """All that a durable cluster needs lies beside its file.

        Raises:
            OSError: the file cannot be written.
        """
        file = self._file(wanted)
        assert file is not None
        file.append([stored])
        file.sync()

    def _file(self, wanted: str | os.PathLike[str] | None) -> RecoveryFile | None:
        if wanted is not None:
            return self._files.get(Path(wanted).expanduser().absolute())
        return self._files.get(None) or next(iter(self._files.values()), None)

    @property
    def paths(self) -> list[Path]:
        """Where the files are."""
        return [file.path for file in self._files.values()]

    def cluster_opened(self, spec: ComputationSpec) -> None:
        """A cluster was opened."""
        self._clusters[spec.id] = noted = ClusterNoted(spec.id, spec.name, spec.kind)
        self._append([noted])

    def cluster_shared(self, shared: ClusterShared) -> None:
        """A shared scheduler has taken up a cluster: from now on it may hold results."""
        self._shared[shared.id] = shared
        self._append([shared])

    def cluster_left(self, cluster: ComputationId, pending: Iterable[int]) -> None:
        """Its jobs were to be ended, and the shared scheduler could not be told; `pending`: these had not ended."""
        self._append([ClusterLeft(cluster, tuple(pending))])

    def cluster_over(self, cluster: ComputationId) -> None:
        """All its jobs have ended."""
        self._shared.pop(cluster, None)
        if self._clusters.pop(cluster, None) is not None:
            self._append([ClusterOver(cluster)])

    def node_leased(self, node: NodeNoted) -> None:
        """A node has granted its lease: from now on it may hold results."""
        if self._nodes.get(node.process) != node:
            self._nodes[node.process] = node
            self._append([node])

    def end(self) -> None:
        """The scheduler ends: with every cluster over there is nothing to recover."""
        self._close_journals()
        for file in self._files.values():
            if self._clusters:
                file.close()
            else:
                file.remove()
        self._files.clear()

    def abandon(self) -> None:
        """In a forked child: the files are the parent's."""
        self._close_journals()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _close_journals(self) -> None:
        for journal in self._journals.values():
            journal.close()
        self._journals.clear()

    def _snapshot(self) -> list[AnyEntry]:
        return [self._begun, *self._clusters.values(), *self._shared.values(), *self._nodes.values()]

    def _append(self, entries: list[AnyEntry]) -> None:
        for wanted, file in list(self._files.items()):
            try:
                file.append(entries)
            except OSError as error:
                logger.warning(
                    "the recovery file %s cannot be written any more (%s): if this program is killed, it may not lead "
                    "to all results",
                    file.path,
                    error.strerror,
                )
                with contextlib.suppress(OSError):  # what is in it is still good
                    file.sync()
                file.close()
                del self._files[wanted]
