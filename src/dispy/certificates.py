"""A small certificate authority: makes the files with which processes can authenticate by mutual TLS.

The role of a certificate's owner is the organizational unit of its subject. Whoever holds `ca.key` can let
anyone into the cluster; it is needed on no node. What is checked on a connection is told in `dispy.wire`.
"""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispy.errors import SettingsError
from dispy.model import Role

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 825
ORGANIZATION: Final = "dispy"
ROLES: Final = (Role.CLIENT, Role.SCHEDULER, Role.NODE, Role.ADMIN)
"""Roles that certificates are made for; a node uses its own as a peer of other nodes, too."""
_AUTHORITY_FILES: Final = ("ca.pem", "ca.key")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Clocks of machines differ: a certificate made now must be good on a machine that is somewhat behind.
_BACKDATED: Final = datetime.timedelta(days=1)


class CertificateFiles(Struct, frozen=True):
    """A certificate and its private key, both PEM."""

    certfile: Path
    keyfile: Path


class CertificateInfo(Struct, frozen=True):
    """What a certificate says."""

    name: str
    role: Role | None
    """None for an authority, and for certificates that were not made for a role of dispy."""
    authority: bool
    issuer: str
    expires_at: datetime.datetime
    """In UTC."""
    fingerprint: str
    """SHA-256 in hexadecimal digits."""


def make_ca(directory: Path, name: str = "dispy authority") -> CertificateFiles:
    """Make a certificate authority: `ca.pem` for every machine, `ca.key` for nobody but its owner.

    Raises:
        SettingsError: there is one in the directory already, or the directory cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    certfile, keyfile = (directory / file for file in _AUTHORITY_FILES)
    _refuse_overwriting(certfile, keyfile)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name, None)
    builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return _sign_and_write(builder, key, key, CertificateFiles(certfile, keyfile))


def make_certificate(directory: Path, role: Role | str, name: str) -> CertificateFiles:
    """Make certificate and key for a process, signed by the authority in `directory`, beside it.

    Raises:
        SettingsError: no such role, a name that is no file name, no authority there, or the files exist.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    checked = _role(role)
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} cannot name a certificate: use 1 to 63 letters, digits, dots, dashes and underscores"
        )
    files = CertificateFiles(directory / f"{checked}-{name}.pem", directory / f"{checked}-{name}.key")
    _refuse_overwriting(files.certfile, files.keyfile)
    authority, authority_key = _load_authority(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_subject(name, checked), authority.subject, key.public_key(), CERTIFICATE_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    # Either side may dial, so every process is server and client.
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
    )
    return _sign_and_write(builder, key, authority_key, files)


def describe_certificate(certfile: Path) -> CertificateInfo:
    """What the first certificate in a PEM file says.

    Raises:
        SettingsError: the file cannot be read or holds no certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    certificate = _load_certificate(certfile)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        authority = constraints.ca
    except x509.ExtensionNotFound:
        authority = False
    return CertificateInfo(
        name=_common_name(certificate.subject),
        role=_role_of(certificate.subject),
        authority=authority,
        issuer=_common_name(certificate.issuer),
        expires_at=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def why_out_of_date(certificate: bytes, now: float) -> str:
    """Why a certificate (DER) is not valid at a time (seconds since the epoch); empty when it is.

    Raises:
        ValueError: it is no certificate.
    """
    from cryptography import x509

    read = x509.load_der_x509_certificate(certificate)
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    if at > read.not_valid_after_utc:
        return f"expired on {read.not_valid_after_utc:%Y-%m-%d}"
    if at < read.not_valid_before_utc:
        return f"is valid from {read.not_valid_before_utc:%Y-%m-%d} on only (is the clock of this machine right?)"
    return ""


def _role(role: Role | str) -> Role:
    for known in ROLES:
        if known == role:
            return known
    raise SettingsError(f"{str(role)!r} is not a role of a certificate: use {', '.join(ROLES)}")


def _subject(name: str, role: Role | None) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION)]
    if role is not None:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, str(role)))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _common_name(name: x509.Name) -> str:
    from cryptography.x509.oid import NameOID

    parts = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(parts[0].value) if parts else name.rfc4514_string()


def _role_of(name: x509.Name) -> Role | None:
    from cryptography.x509.oid import NameOID

    values = {part.value for part in name.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)}
    return next((role for role in ROLES if role in values), None)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_certificate(certfile: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certfile.read_bytes())
    except OSError as error:
        raise SettingsError(f"the certificate file {certfile} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{certfile} holds no certificate in PEM form: {error}") from error


def _load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    certfile, keyfile = (directory / file for file in _AUTHORITY_FILES)
    if not certfile.exists() or not keyfile.exists():
        raise SettingsError(
            f"there is no certificate authority in {directory}: make one with `dispy cert ca -o {directory}`"
        )
    certificate = _load_certificate(certfile)
    try:
        key = serialization.load_pem_private_key(keyfile.read_bytes(), password=None)
    except OSError as error:
        raise SettingsError(f"the key file {keyfile} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{keyfile} holds no usable private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise SettingsError(f"{keyfile} is not the key of {certfile}")
    return certificate, key


def _sign_and_write(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signing_key: ec.EllipticCurvePrivateKey,
    files: CertificateFiles,
) -> CertificateFiles:
    from cryptography.hazmat.primitives import hashes, serialization

    certificate = builder.sign(signing_key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        files.certfile.parent.mkdir(parents=True, exist_ok=True)
        _write(files.keyfile, secret, 0o600)
        _write(files.certfile, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be written: {error.strerror}") from error
    return files


def _refuse_overwriting(*paths: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise SettingsError(f"{path} exists already; remove it or choose another place")


def _write(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
