"""TLS 1.3 for links: contexts, the listener's certificate, and what a verified certificate allows.

Without certificates of the user a listening process makes an ephemeral one; it is bound to the secret by the
handshake (see `dispy.wire.handshake`), so diallers need not verify it. With certificates both sides verify.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import ssl
from collections.abc import Mapping
from typing import Final

from dispy.errors import SettingsError
from dispy.model import Role
from dispy.secrets import Credentials

_CERTIFICATE_DAYS: Final = 3650
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_ORGANIZATION: Final = "dispy"

_ALLOWED: Final[Mapping[str, frozenset[Role]]] = {
    # A program of a user holds its own scheduler unless it uses a shared one.
    "client": frozenset({Role.CLIENT, Role.SCHEDULER}),
    "scheduler": frozenset({Role.SCHEDULER}),
    "node": frozenset({Role.NODE, Role.PEER}),
    "admin": frozenset({Role.ADMIN, Role.CLIENT, Role.SCHEDULER}),
}
_OF_USERS: Final = frozenset({Role.CLIENT, Role.ADMIN})
"""Roles in which users come to a shared scheduler."""


class ListenerTls:
    """The TLS side of a process that accepts links."""

    def __init__(self, credentials: Credentials) -> None:
        """Load the certificate, if the user has one.

        Raises:
            SettingsError: a certificate file cannot be used, or this platform needs one.
        """
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Tickets would be bytes before the handshake that nobody uses: links are long-lived.
        self.context.num_tickets = 0
        _configure(self.context, credentials)
        self._certificate_hash = b""
        if credentials.certfile:
            self._certificate_hash = hashlib.sha256(_first_certificate(credentials.certfile)).digest()
        elif not hasattr(os, "memfd_create"):
            raise SettingsError("on this platform a process that listens needs a certificate: give --certfile")

    def certificate_hash(self) -> bytes:
        """The SHA-256 of the certificate that it shows. One that it makes for itself is made when this is first asked
        for, before the context is used: most programs, and nodes that dial, accept no link and never pay for it.
        """
        if not self._certificate_hash:
            self._certificate_hash = _load_ephemeral(self.context)
        return self._certificate_hash


def prepare_certificate(credentials: Credentials) -> None:
    """Load the code that a listener with these credentials needs for its certificate: 50 ms, for a better time."""
    if not credentials.certfile:
        importlib.import_module("cryptography.x509")


def verifies(credentials: Credentials) -> bool:
    """Whether TLS verifies the other side's certificate with these credentials."""
    return bool(credentials.certfile or credentials.cafile)


def dialler_context(credentials: Credentials) -> ssl.SSLContext:
    """The TLS side of a process that dials.

    Raises:
        SettingsError: a certificate file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Names of certificates are no names of hosts here: what counts is the authority, or the secret.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _configure(context, credentials)
    return context


def certified_name(certificate: Mapping[str, object] | None) -> str:
    """The common name in a verified certificate (as `SSLObject.getpeercert()` gives it); empty when there is none."""
    subject = (certificate or {}).get("subject", ())
    assert isinstance(subject, tuple)
    return next((str(value) for relative in subject for key, value in relative if key == "commonName"), "")


def certified_roles(certificate: Mapping[str, object] | None, towards: Role) -> frozenset[Role] | None:
    """The roles that a verified certificate (as `SSLObject.getpeercert()` gives it) allows; None: any.

    Certificates that were not made by `dispy cert` for a role say nothing of roles. `towards` is the role of this
    side: no certificate of a user makes the scheduler to which other users give their jobs.
    """
    subject = (certificate or {}).get("subject", ())
    assert isinstance(subject, tuple)
    parts = [pair for relative in subject for pair in relative]
    if ("organizationName", _ORGANIZATION) not in parts:
        return None
    allowed = [_ALLOWED[v] for key, v in parts if key == "organizationalUnitName" and v in _ALLOWED]
    if not allowed:
        return None
    roles = frozenset[Role]().union(*allowed)
    is_of_user = towards in _OF_USERS and _ALLOWED["scheduler"] not in allowed
    return roles - {Role.SCHEDULER} if is_of_user else roles


def _configure(context: ssl.SSLContext, credentials: Credentials) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if credentials.certfile:
        try:
            context.load_cert_chain(credentials.certfile, credentials.keyfile or None, _no_password)
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(filter(None, (credentials.certfile, credentials.keyfile)))
            raise SettingsError(f"{files} cannot be used as certificate and key: {_why(error)}") from error
    trusted = credentials.cafile or credentials.certfile
    if trusted:
        try:
            context.load_verify_locations(trusted)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"{trusted} cannot be used as certificate authority: {_why(error)}") from error
        # A shared certificate is its own authority, whether it calls itself one or not.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        context.verify_mode = ssl.CERT_REQUIRED


def _no_password() -> str:
    # Without this OpenSSL would ask at the terminal.
    raise ssl.SSLError("the key is encrypted; dispy needs one without a passphrase")


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _first_certificate(certfile: str) -> bytes:
    """The first certificate of a PEM file (which may begin with a key), in DER."""
    with open(certfile, encoding="ascii", errors="replace") as file:
        text = file.read()
    begin = text.find(_BEGIN)
    end = text.find(_END, begin)
    if begin < 0 or end < 0:
        raise SettingsError(f"{certfile} holds no certificate")
    return ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)])


def _load_ephemeral(context: ssl.SSLContext) -> bytes:
    """Make a certificate for this process and load it from memory; returns its SHA-256."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dispy ephemeral")])
    today = datetime.datetime.now(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    fd = os.memfd_create("dispy-key", os.MFD_CLOEXEC)
    try:
        os.write(fd, private + certificate.public_bytes(pem))
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()
