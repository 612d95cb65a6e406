"""The secret that makes processes trust each other: find it, make it, keep it, and derive keys from it.

With nothing configured, processes of one user (or one shared home) share a secret file that the first of them
makes. Keys come from the secret by HKDF, one per purpose; the secret itself never travels.
Certificates are made in `dispy.certificates`; how both are used on a connection is told in `dispy.wire`.
"""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import hmac
import os
import re
import secrets
import ssl
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dispy import settings
from dispy.errors import SecretError

SECRET_VARIABLES: Final = ("DISPY_SECRET", "DISPY_SECRET_FILE")
"""Variables that child processes which run user code must not inherit."""
SYSTEM_SECRET: Final = Path("/etc/dispy/secret")
SYSTEM_GROUP: Final = "dispy"

_PREFIX: Final = "dispy1_"
_GENERATED: Final = re.compile(r"dispy1_[A-Za-z0-9_-]{43}")
# Published in docs/design/protocol.md: every process must come to the same key, so the salt cannot be random.
_SCRYPT_SALT: Final = b"dispy secret, protocol 1"
_SCRYPT_COST: Final = 1 << 14
_EXTRACT_SALT: Final = b"dispy master key, protocol 1"
_READ_PATIENCE: Final = 3.0
_SIZE_LIMIT: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Credentials:
    """By what this process proves who it is."""

    key: bytes | None = field(repr=False)
    """32-byte master key from the secret; None when certificates alone authenticate."""
    key_id: bytes
    """8 bytes that name the secret (or the certificate authority) in discovery without telling it."""
    source: str = field(compare=False)
    """For people: where the secret comes from."""
    certfile: str | None = None
    keyfile: str | None = None
    cafile: str | None = None
    insecure: bool = False
    """An empty secret is accepted beyond loopback, because the user said so."""
    empty: bool = False
    """The secret was given as an empty text: loopback only unless `insecure`."""
    certificate_digest: bytes = b""
    """SHA-256 over the certificates of the authority (or the shared certificate); public knowledge."""
    not_kept: str = field(default="", compare=False)
    """Why the secret is in this process alone, where no file could keep it; else empty."""

    def derive(self, purpose: str) -> bytes:
        """A 32-byte key for one purpose.

        Without a secret it comes from the certificate of the authority, which is no secret: it then separates
        installations in discovery and must not authenticate a link.
        """
        return _expand(self.key if self.key is not None else _extract(self.certificate_digest), purpose)


class _NotKeptError(SecretError):
    """A secret could be made, and there is no place to keep it."""


@dataclass(frozen=True, slots=True)
class FoundSecret:
    """A secret and where it was found."""

    text: str = field(repr=False)
    source: str
    not_kept: str = ""


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """Where a secret was written, and what (if anything) goes before that file."""

    path: Path
    overridden_by: str | None


def find_credentials(
    *,
    secret: str | None = None,
    secret_file: str | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    cafile: str | None = None,
    insecure: bool = False,
    create: bool = True,
    in_memory: bool = False,
) -> Credentials:
    """The credentials of this process: arguments, else variables, else files, else a secret made now.

    With `in_memory` a secret that no file can keep lasts as long as this process, and `not_kept` says why.

    Certificates given (here or by variable) without a secret named (argument, file argument or variable)
    authenticate alone. A secret that was not made by dispy costs some 50 ms of key stretching, once per
    process.

    Raises:
        SecretError: nothing usable was found, or a file of it can be read by others, or none could be made.
    """
    certfile = certfile or settings.variable("DISPY_CERTFILE")
    keyfile = keyfile or settings.variable("DISPY_KEYFILE")
    cafile = cafile or settings.variable("DISPY_CAFILE")
    digest = _check_certificates(certfile, keyfile, cafile)
    found = _named_secret(secret, secret_file)
    if found is None and not digest:
        found = _kept_secret(create=create, in_memory=in_memory)
    if found is None:
        key = None
        source = f"certificate authority {cafile}" if cafile else f"certificate {certfile}"
    else:
        key = _master_key(found.text)
        source = found.source
    return Credentials(
        key=key,
        key_id=_key_id(key if key is not None else _extract(digest)),
        source=source,
        certfile=certfile,
        keyfile=keyfile,
        cafile=cafile,
        insecure=insecure or settings.flag("DISPY_INSECURE"),
        empty=found is not None and not found.text,
        certificate_digest=digest,
        not_kept=found.not_kept if found is not None else "",
    )


def credentials_from_key(key: bytes) -> Credentials:
    """Credentials from 32 random bytes that only this process and one that it starts know."""
    if len(key) != 32:
        raise SecretError(f"a key has 32 bytes, not {len(key)}")
    return Credentials(key=key, key_id=_key_id(key), source="memory of the program that started this process")


def user_secret_file() -> Path:
    """The path of the user's secret file, whether it exists or not.

    Raises:
        SecretError: the user has no home directory.
    """
    path = settings.config_dir() / "secret"
    if not path.is_absolute():
        raise SecretError(
            "this user has no home directory to keep a secret in; name a file with --secret-file or DISPY_SECRET_FILE"
        )
    return path


def show_secret(*, secret: str | None = None, secret_file: str | None = None, create: bool = True) -> FoundSecret:
    """The secret that processes started from here (with these arguments) use.

    Raises:
        SecretError: there is none (and none could be made), or its file is not safe.
    """
    found = _named_secret(secret, secret_file) or _kept_secret(create=create)
    if not found.text:
        raise SecretError(f"the secret from {found.source} is empty")
    return found


def make_secret(*, replace: bool = False) -> StoredSecret:
    """Make a new random secret in the user's file.

    Raises:
        SecretError: the file exists and `replace` is not set, or it cannot be written.
    """
    path = user_secret_file()
    if replace:
        return store_secret(new_secret())
    if not _create(path, new_secret()):
        raise SecretError(
            f"{path} exists already; nodes and clients that use it would no longer know each other "
            "(make a new one all the same with `dispy secret make --replace`)"
        )
    return StoredSecret(path, _override())


def store_secret(text: str) -> StoredSecret:
    """Keep this secret in the user's file, in place of the one that is there.

    Raises:
        SecretError: the text is not usable as a secret, or the file cannot be written.
    """
    text = _clean(text, "the given secret")
    if not text:
        raise SecretError("the given secret is empty; nothing was changed")
    path = user_secret_file()
    try:
        temporary = _write_temporary(path, text)
        try:
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _not_writable(path, error) from error
    return StoredSecret(path, _override())


def new_secret() -> str:
    """A fresh random secret, in the form that dispy recognizes as its own."""
    return _PREFIX + secrets.token_urlsafe(32)


# ---- where a secret is found ----


def _named_secret(secret: str | None, secret_file: str | None) -> FoundSecret | None:
    if secret is not None:
        text = _clean(secret, "the given secret")
        if secret and not text:
            raise SecretError("the given secret consists of blanks; give a real one, or '' for none at all")
        return FoundSecret(text, "argument" if text else "none, as asked")
    if secret_file:
        return FoundSecret(_read(Path(secret_file).expanduser()), secret_file)
    if value := settings.variable("DISPY_SECRET"):
        return FoundSecret(_clean(value, "DISPY_SECRET"), "DISPY_SECRET")
    if value := settings.variable("DISPY_SECRET_FILE"):
        return FoundSecret(_read(Path(value).expanduser()), f"{value} (DISPY_SECRET_FILE)")
    return None


def _kept_secret(*, create: bool, in_memory: bool = False) -> FoundSecret:
    remark = ""
    if os.path.lexists(SYSTEM_SECRET):
        if os.access(SYSTEM_SECRET, os.R_OK):
            return FoundSecret(_read(SYSTEM_SECRET), str(SYSTEM_SECRET))
        remark = f" ({SYSTEM_SECRET} is not readable for this user)"
    path = user_secret_file()
    if os.path.lexists(path):
        return FoundSecret(_read_patiently(path), f"{path}{remark}")
    if not create:
        raise SecretError(f"there is no secret yet at {path}{remark}; make one with `dispy secret make`")
    text = new_secret()
    try:
        made = _create(path, text)
    except _NotKeptError as error:
        if not in_memory:
            raise
        return FoundSecret(_secret_in_memory(), "memory", str(error))
    if made:
        return FoundSecret(text, f"{path} (made now){remark}")
    return FoundSecret(_read_patiently(path), f"{path}{remark}")


@functools.cache
def _secret_in_memory() -> str:
    """One for the whole process, so that its clusters share their nodes."""
    return new_secret()


def _override() -> str | None:
    for name in SECRET_VARIABLES:
        if settings.variable(name):
            return name
    return str(SYSTEM_SECRET) if os.access(SYSTEM_SECRET, os.R_OK) else None


def _clean(text: str, what: str) -> str:
    text = text.strip()
    if any(ord(character) < 32 for character in text):
        raise SecretError(f"{what} has several lines or control characters; a secret is one line of text")
    return text


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise SecretError(f"the secret file {path} cannot be read: {error.strerror}") from error
    if len(data) > _SIZE_LIMIT:
        raise SecretError(f"{path} is too large for a secret file; it should hold one line of text")
    try:
        text = _clean(data.decode(), f"the secret file {path}")
    except UnicodeDecodeError as error:
        raise SecretError(f"the secret file {path} is not text") from error
    if not text:
        raise SecretError(f"the secret file {path} is empty; write a secret into it or remove it")
    return text


def _read_patiently(path: Path) -> str:
    """Read a file that another process may be making right now (NFS shows it late, or empty at first)."""
    deadline = time.monotonic() + _READ_PATIENCE
    while True:
        try:
            if path.stat().st_size:
                return _read(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise SecretError(f"the secret file {path} cannot be read: {error.strerror}") from error
        if time.monotonic() > deadline:
            return _read(path)
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


# ---- how a secret file is made ----


def _create(path: Path, text: str) -> bool:
    """Make the file with its content at once; False when it exists already."""
    try:
        temporary = _write_temporary(path, text)
        try:
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


def _not_writable(path: Path, error: OSError) -> _NotKeptError:
    return _NotKeptError(
        f"no secret can be kept at {path}: {error.strerror}; "
        "name another file with --secret-file or DISPY_SECRET_FILE, or give the secret by DISPY_SECRET"
    )


# ---- keys ----


@functools.lru_cache(maxsize=8)
def _master_key(text: str) -> bytes:
    if _GENERATED.fullmatch(text):
        return _extract(base64.urlsafe_b64decode(text.removeprefix(_PREFIX) + "="))
    if not text:
        return _extract(b"")
    return hashlib.scrypt(text.encode(), salt=_SCRYPT_SALT, n=_SCRYPT_COST, r=8, p=1, dklen=32)


def _extract(material: bytes) -> bytes:
    return hmac.digest(_EXTRACT_SALT, material, "sha256")


def _expand(key: bytes, purpose: str) -> bytes:
    return hmac.digest(key, f"dispy {purpose}".encode() + b"\x01", "sha256")


def _key_id(key: bytes) -> bytes:
    return _expand(_expand(key, "discovery"), "key id")[:8]


def _check_certificates(certfile: str | None, keyfile: str | None, cafile: str | None) -> bytes:
    """The digest of the certificates that stand for the installation; empty when none are given."""
    if certfile is None:
        if keyfile or cafile:
            raise SecretError("a key or certificate authority is given without a certificate: add --certfile")
        return b""
    if keyfile is not None:
        _check_key_file(keyfile)
    path = cafile or certfile
    own = _certificates(certfile)
    _check_key(certfile, keyfile)
    return hashlib.sha256(b"".join(_certificates(path) if cafile else own)).digest()


def _check_key_file(keyfile: str) -> None:
    path = Path(keyfile).expanduser()
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise SecretError(f"the key file {keyfile} cannot be read: {error.strerror}") from error
    if os.name == "posix" and mode & 0o007:
        raise SecretError(f"others can read the key file {keyfile}: run `chmod 600 {keyfile}`")


def _check_key(certfile: str, keyfile: str | None) -> None:
    certificate = Path(certfile).expanduser()
    key = None if keyfile is None else Path(keyfile).expanduser()
    if key is None and b"PRIVATE KEY-----" not in certificate.read_bytes():
        raise SecretError(f"the certificate file {certfile} contains no private key: name its key with --keyfile")
    try:
        # An empty password instead of a question at the terminal, which nobody may be at.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=b"")
    except (ssl.SSLError, OSError) as error:
        raise SecretError(
            f"the private key in {keyfile or certfile} cannot be used with the certificate {certfile}: it belongs to "
            f"another one, is damaged, or is encrypted ({getattr(error, 'reason', None) or error})"
        ) from error


def _certificates(name: str) -> list[bytes]:
    try:
        text = Path(name).expanduser().read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise SecretError(f"the certificate file {name} cannot be read: {error.strerror}") from error
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL)
    try:
        certificates = sorted(ssl.PEM_cert_to_DER_cert(block) for block in blocks)
    except ValueError as error:
        raise SecretError(f"the certificate file {name} is damaged: {error}") from error
    if not certificates:
        raise SecretError(f"the file {name} contains no certificate in PEM form")
    return certificates
