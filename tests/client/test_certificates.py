"""Certificates of the small authority: what is in them, that TLS accepts them, and what is refused."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from dispy import certificates
from dispy.errors import SettingsError
from dispy.model import Role
from dispy.secrets import find_credentials


def _context(side: int, authority: Path, files: certificates.CertificateFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(authority)
    context.load_cert_chain(files.certfile, files.keyfile)
    return context


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    pending = set(ends)
    for _ in range(10):
        for end in tuple(pending):
            try:
                end.do_handshake()
                pending.discard(end)
            except ssl.SSLWantReadError:
                pass
    assert not pending
    return ends


def test_both_roles_verify_each_other_in_tls(tmp_path: Path) -> None:
    authority = certificates.make_ca(tmp_path)
    node = certificates.make_certificate(tmp_path, Role.NODE, "alpha")
    client = certificates.make_certificate(tmp_path, "client", "ada")
    dialler, listener = _handshake(
        _context(ssl.PROTOCOL_TLS_CLIENT, authority.certfile, client),
        _context(ssl.PROTOCOL_TLS_SERVER, authority.certfile, node),
    )
    seen_by_listener = listener.getpeercert()
    seen_by_dialler = dialler.getpeercert()
    assert seen_by_listener is not None
    assert seen_by_dialler is not None
    assert (("organizationalUnitName", "client"),) in seen_by_listener["subject"]
    assert (("organizationalUnitName", "node"),) in seen_by_dialler["subject"]


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    ours = certificates.make_ca(tmp_path / "ours")
    theirs = certificates.make_ca(tmp_path / "theirs")
    node = certificates.make_certificate(tmp_path / "ours", "node", "alpha")
    intruder = certificates.make_certificate(tmp_path / "theirs", "client", "eve")
    client = _context(ssl.PROTOCOL_TLS_CLIENT, ours.certfile, intruder)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(client, _context(ssl.PROTOCOL_TLS_SERVER, ours.certfile, node))
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(
            _context(ssl.PROTOCOL_TLS_CLIENT, theirs.certfile, intruder),
            _context(ssl.PROTOCOL_TLS_SERVER, ours.certfile, node),
        )


def test_description_and_file_modes(tmp_path: Path) -> None:
    authority = certificates.make_ca(tmp_path)
    files = certificates.make_certificate(tmp_path, "scheduler", "head.example-1")
    assert stat.S_IMODE(authority.keyfile.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.keyfile.stat().st_mode) == 0o600
    about = certificates.describe_certificate(files.certfile)
    assert (about.name, about.role, about.authority) == ("head.example-1", Role.SCHEDULER, False)
    assert about.issuer == "dispy authority"
    assert len(about.fingerprint) == 64
    root = certificates.describe_certificate(authority.certfile)
    assert (root.role, root.authority) == (None, True)
    assert root.expires_at > about.expires_at


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    certificates.make_ca(tmp_path)
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(SettingsError, match="exists already"):
        certificates.make_ca(tmp_path)
    assert (tmp_path / "ca.key").read_bytes() == before
    certificates.make_certificate(tmp_path, "node", "alpha")
    with pytest.raises(SettingsError, match="exists already"):
        certificates.make_certificate(tmp_path, "node", "alpha")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "a b", "x" * 64])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    certificates.make_ca(tmp_path)
    with pytest.raises(SettingsError, match="cannot name a certificate"):
        certificates.make_certificate(tmp_path, "node", name)


def test_refusals_name_the_file_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dispy cert ca"):
        certificates.make_certificate(tmp_path, "node", "alpha")
    with pytest.raises(SettingsError, match="not a role"):
        certificates.make_certificate(tmp_path, "king", "alpha")
    certificates.make_ca(tmp_path)
    certificates.make_ca(tmp_path / "other")
    (tmp_path / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(SettingsError, match="is not the key of"):
        certificates.make_certificate(tmp_path, "node", "alpha")
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(SettingsError, match="no usable private key"):
        certificates.make_certificate(tmp_path, "node", "alpha")
    with pytest.raises(SettingsError, match="no certificate in PEM form"):
        certificates.describe_certificate(tmp_path / "ca.key")


def test_certificates_alone_are_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    authority = certificates.make_ca(tmp_path)
    node = certificates.make_certificate(tmp_path, "node", "alpha")
    client = certificates.make_certificate(tmp_path, "client", "ada")
    mine, yours = (
        find_credentials(certfile=str(files.certfile), keyfile=str(files.keyfile), cafile=str(authority.certfile))
        for files in (node, client)
    )
    assert mine.key is None
    assert not mine.empty
    assert (mine.key_id, mine.derive("discovery")) == (yours.key_id, yours.derive("discovery"))
    assert "authority" in mine.source
    assert not (tmp_path / "config").exists()
    both = find_credentials(secret="word", certfile=str(node.certfile), keyfile=str(node.keyfile))
    assert both.key is not None
    assert both.key_id != mine.key_id
