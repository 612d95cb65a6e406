"""The secret that makes processes trust each other: find it, make it, keep it, and derive keys from it.

With nothing configured, processes of one user (or one shared home) share a secret file that the first of them
makes. Keys come from the secret by HKDF, one per purpose; the secret itself never travels.
Certificates are made in `dispy.certificates`; how both are used on a connection is told in `dispy.wire`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import re
import secrets
import ssl
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from dispy import secretfiles, settings
from dispy.errors import SecretError

SECRET_VARIABLES: Final = (
    *("DISPY_SECRET", "DISPY_SECRET_FILE", "DISPY_ADMIN_SECRET", "DISPY_ADMIN_SECRET_FILE"),
    *("DISPY_NODE_SECRET", "DISPY_NODE_SECRET_FILE", "DISPY_CLUSTER_SECRET", "DISPY_CLUSTER_SECRET_FILE"),
)
"""Variables that child processes which run user code must not inherit."""

_PREFIX: Final = "dispy1_"
_GENERATED: Final = re.compile(r"dispy1_[A-Za-z0-9_-]{43}")
# Published in docs/design/protocol.md: every process must come to the same key, so the salt cannot be random.
_SCRYPT_SALT: Final = b"dispy secret, protocol 1"
_SCRYPT_COST: Final = 1 << 14
_EXTRACT_SALT: Final = b"dispy master key, protocol 1"


class Credentials(Struct, frozen=True):
    """By what this process proves who it is."""

    key: bytes | None
    """32-byte master key from the secret; None when certificates alone authenticate."""
    key_id: bytes
    """8 bytes that name the secret (or the certificate authority) in discovery without telling it."""
    source: str
    """For people: where the secret comes from. It makes no difference between two of these."""
    certfile: str | None = None
    keyfile: str | None = None
    cafile: str | None = None
    insecure: bool = False
    """An empty secret is accepted beyond loopback, because the user said so."""
    empty: bool = False
    """The secret was given as an empty text: loopback only unless `insecure`."""
    certificate_digest: bytes = b""
    """SHA-256 over the certificates of the authority (or the shared certificate); public knowledge."""
    not_kept: str = ""
    """Why the secret is in this process alone, where no file could keep it; else empty. No difference, either."""

    def __repr__(self) -> str:
        """Nothing of the secret: this may stand in a log."""
        return f"Credentials(key_id={self.key_id!r}, source={self.source!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        files = self.certfile, self.keyfile, self.cafile
        return self.key, self.key_id, *files, self.insecure, self.empty, self.certificate_digest

    def derive(self, purpose: str) -> bytes:
        """A 32-byte key for one purpose.

        Without a secret it comes from the certificate of the authority, which is no secret: it then separates
        installations in discovery and must not authenticate a link.
        """
        return _expand(self.key if self.key is not None else _extract(self.certificate_digest), purpose)


class FoundSecret(Struct, frozen=True):
    """A secret and where it was found."""

    text: str
    source: str
    not_kept: str = ""

    def __repr__(self) -> str:
        """Not the secret itself: this may stand in a log."""
        return f"FoundSecret(source={self.source!r})"


class StoredSecret(Struct, frozen=True):
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


def find_admin_credentials(
    base: Credentials | None = None,
    *,
    secret: str | None = None,
    secret_file: str | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    cafile: str | None = None,
) -> Credentials | None:
    """What proves the owner of nodes on admin links: argument, else variable, else file; None when nothing names it.

    Its key comes from a purpose of its own: what opens one kind of link never opens the other.

    Args:
        base: on a node, the credentials of everybody else: the two secrets must differ.
        secret: the text; empty stands for none.
        secret_file: a file that holds it.
        certfile, keyfile, cafile: for a process that dials, where nodes show and verify certificates.

    Raises:
        SecretError: a file cannot be used or read by others, or it is the secret of everybody else.
    """
    found = _named_admin_secret(secret, secret_file)
    if found is None or not found.text:
        return None
    master = _master_key(found.text)
    if base is not None and base.key is not None and hmac.compare_digest(base.key, master):
        raise SecretError(
            f"the admin secret (from {found.source}) is the secret that programs know: whoever may run jobs could "
            "steer the node; choose another one for --admin_secret"
        )
    key = _expand(master, "admin")
    digest = _check_certificates(certfile, keyfile, cafile)
    return Credentials(key, _key_id(key), found.source, certfile, keyfile, cafile, certificate_digest=digest)


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
    if not secretfiles.create(path, new_secret()):
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
    text = secretfiles.clean(text, "the given secret")
    if not text:
        raise SecretError("the given secret is empty; nothing was changed")
    path = user_secret_file()
    secretfiles.replace(path, text)
    return StoredSecret(path, _override())


def new_secret() -> str:
    """A fresh random secret, in the form that dispy recognizes as its own."""
    return _PREFIX + secrets.token_urlsafe(32)


# ---- where a secret is found ----


def _named_secret(secret: str | None, secret_file: str | None) -> FoundSecret | None:
    if secret is not None:
        text = secretfiles.clean(secret, "the given secret")
        if secret and not text:
            raise SecretError("the given secret consists of blanks; give a real one, or '' for none at all")
        return FoundSecret(text, "argument" if text else "none, as asked")
    if secret_file:
        return FoundSecret(secretfiles.read(Path(secret_file).expanduser()), secret_file)
    if value := settings.variable("DISPY_SECRET"):
        return FoundSecret(secretfiles.clean(value, "DISPY_SECRET"), "DISPY_SECRET")
    if value := settings.variable("DISPY_SECRET_FILE"):
        return FoundSecret(secretfiles.read(Path(value).expanduser()), f"{value} (DISPY_SECRET_FILE)")
    return None


def _named_admin_secret(secret: str | None, secret_file: str | None) -> FoundSecret | None:
    if secret is not None:
        return FoundSecret(secretfiles.clean(secret, "the given admin secret"), "argument")
    if secret_file:
        return FoundSecret(secretfiles.read(Path(secret_file).expanduser()), secret_file)
    if value := settings.variable("DISPY_ADMIN_SECRET"):
        return FoundSecret(secretfiles.clean(value, "DISPY_ADMIN_SECRET"), "DISPY_ADMIN_SECRET")
    if value := settings.variable("DISPY_ADMIN_SECRET_FILE"):
        return FoundSecret(secretfiles.read(Path(value).expanduser()), f"{value} (DISPY_ADMIN_SECRET_FILE)")
    return None


def _kept_secret(*, create: bool, in_memory: bool = False) -> FoundSecret:
    remark = ""
    if os.path.lexists(secretfiles.SYSTEM_SECRET):
        if os.access(secretfiles.SYSTEM_SECRET, os.R_OK):
            return FoundSecret(secretfiles.read(secretfiles.SYSTEM_SECRET), str(secretfiles.SYSTEM_SECRET))
        remark = f" ({secretfiles.SYSTEM_SECRET} is not readable for this user)"
    path = user_secret_file()
    if os.path.lexists(path):
        return FoundSecret(secretfiles.read_patiently(path), f"{path}{remark}")
    if not create:
        raise SecretError(f"there is no secret yet at {path}{remark}; make one with `dispy secret make`")
    text = new_secret()
    try:
        made = secretfiles.create(path, text)
    except secretfiles.NotKeptError as error:
        if not in_memory:
            raise
        return FoundSecret(_secret_in_memory(), "memory", str(error))
    if made:
        return FoundSecret(text, f"{path} (made now){remark}")
    return FoundSecret(secretfiles.read_patiently(path), f"{path}{remark}")


@functools.cache
def _secret_in_memory() -> str:
    """One for the whole process, so that its clusters share their nodes."""
    return new_secret()


def _override() -> str | None:
    for name in ("DISPY_SECRET", "DISPY_SECRET_FILE"):
        if settings.variable(name):
            return name
    return str(secretfiles.SYSTEM_SECRET) if os.access(secretfiles.SYSTEM_SECRET, os.R_OK) else None


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
    own = _certificates(certfile)
    _check_key(certfile, keyfile)
    _check_dates(certfile, own[:1])
    if cafile is None:
        return hashlib.sha256(b"".join(sorted(own))).digest()
    trusted = _certificates(cafile)
    _check_dates(cafile, trusted)
    return hashlib.sha256(b"".join(sorted(trusted))).digest()


def _check_dates(name: str, certificates: list[bytes]) -> None:
    """Refuse a file of which no certificate is valid now: every link would fail, one after another."""
    from dispy.certificates import why_out_of_date

    try:
        problems = [why_out_of_date(certificate, time.time()) for certificate in certificates]
    except ValueError as error:
        raise SecretError(f"the certificate file {name} is damaged: {error}") from error
    if all(problems):
        raise SecretError(
            f"the certificate in {name} {problems[0]}: remove it and make another with `dispy cert`, or get one from "
            "whoever runs the certificate authority"
        )


def _check_key_file(keyfile: str) -> None:
    path = Path(keyfile).expanduser()
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise SecretError(f"the key file {keyfile} cannot be read: {error.strerror}") from None
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
        raise SecretError(f"the certificate file {name} cannot be read: {error.strerror}") from None
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL)
    try:
        certificates = [ssl.PEM_cert_to_DER_cert(block) for block in blocks]
    except ValueError as error:
        raise SecretError(f"the certificate file {name} is damaged: {error}") from error
    if not certificates:
        raise SecretError(f"the file {name} contains no certificate in PEM form")
    return certificates
