"""The files that hold a secret: read them if nobody else can, make them at once with their content.

What stands in them, and where they are looked for, is in `dispy.secrets`.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Final

from dispy import failpoints
from dispy.errors import SecretError

SYSTEM_SECRET: Final = Path("/etc/dispy/secret")
SYSTEM_GROUP: Final = "dispy"

_READ_PATIENCE: Final = 3.0
_SIZE_LIMIT: Final = 64 << 10


class NotKeptError(SecretError):
    """A secret could be made, and there is no place to keep it."""


def clean(text: str, what: str) -> str:
    """A secret without the blanks around it.

    Raises:
        SecretError: it has several lines or control characters.
    """
    text = text.strip()
    if any(ord(character) < 32 for character in text):
        raise SecretError(f"{what} has several lines or control characters; a secret is one line of text")
    return text


def read(path: Path) -> str:
    """The secret in a file.

    Raises:
        SecretError: it cannot be read, others can read it too, or it holds no secret.
    """
    try:
        with open(path, "rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise SecretError(f"the secret file {path} cannot be read: {error.strerror}") from None
    if len(data) > _SIZE_LIMIT:
        raise SecretError(f"{path} is too large for a secret file; it should hold one line of text")
    try:
        text = clean(data.decode(), f"the secret file {path}")
    except UnicodeDecodeError:
        raise SecretError(f"the secret file {path} is not text") from None
    if not text:
        raise SecretError(f"the secret file {path} is empty; write a secret into it or remove it")
    return text


def read_patiently(path: Path) -> str:
    """Read a file that another process may be making right now (NFS shows it late, or empty at first).

    Raises:
        SecretError: as `read`.
    """
    deadline = time.monotonic() + _READ_PATIENCE
    while True:
        try:
            if path.stat().st_size:
                return read(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SecretError(f"the secret file {path} cannot be read: {error.strerror}") from None
        if time.monotonic() > deadline:
            return read(path)
        time.sleep(0.02)


def _check_private(path: Path, status: os.stat_result) -> None:
    if os.name != "posix":
        return
    if not stat.S_ISREG(status.st_mode):
        raise SecretError(f"the secret file {path} is not a regular file")
    if status.st_uid not in {0, os.geteuid()}:
        raise SecretError(
            f"the secret file {path} belongs to another user (uid {status.st_uid}), who can change it: "
            "copy the secret into a file of your own with `dispy secret set`"
        )
    others = status.st_mode & 0o077
    if path == SYSTEM_SECRET:
        if others & ~0o040 or (others and not _is_system_group(status.st_gid)):
            raise SecretError(
                f"others can read or change the secret file {path}: run "
                f"`chown root:{SYSTEM_GROUP} {path}; chmod 640 {path}` as root"
            )
    elif others:
        raise SecretError(f"others can read or change the secret file {path}: run `chmod 600 {path}`")


def _is_system_group(gid: int) -> bool:
    import grp

    try:
        return gid == 0 or grp.getgrgid(gid).gr_name == SYSTEM_GROUP
    except KeyError:
        return False


def create(path: Path, text: str) -> bool:
    """Make the file with its content at once; False when it exists already.

    Raises:
        NotKeptError: it cannot be written.
    """
    try:
        temporary = _write_temporary(path, text)
        try:
            failpoints.hit("secret.before-link")
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                raise
            # A file system without hard links: readers meet the file empty for a moment and wait.
            return _write_exclusively(path, text)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error
    return True


def replace(path: Path, text: str) -> None:
    """Make the file with its content at once, in place of one that is there.

    Raises:
        NotKeptError: it cannot be written.
    """
    try:
        temporary = _write_temporary(path, text)
        try:
            failpoints.hit("secret.before-rename")
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _not_writable(path, error) from error


def _write_temporary(path: Path, text: str) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_exclusively(temporary, text)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _write_exclusively(path: Path, text: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with open(fd, "wb") as file:
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def _not_writable(path: Path, error: OSError) -> NotKeptError:
    return NotKeptError(
        f"no secret can be kept at {path}: {error.strerror}; "
        "name another file with --secret-file or DISPY_SECRET_FILE, or give the secret by DISPY_SECRET"
    )
