"""The handshake: two that share a secret agree; mirrors, replays, other roles and men in the middle do not."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from dispy.errors import LocalProtocolError, RemoteProtocolError
from dispy.model import ProcessId, Role
from dispy.secrets import Credentials, credentials_from_key
from dispy.wire import handshake as module
from dispy.wire.frames import LENGTHS
from dispy.wire.handshake import (
    HANDSHAKE_LIMIT,
    Challenge,
    Channel,
    Handshake,
    HandshakeRejected,
    Hello,
    Identity,
    Proof,
    Refused,
    Welcome,
)
from dispy.wire.messages import PROTOCOL

SECRET = credentials_from_key(b"s" * 32)
OTHER_SECRET = credentials_from_key(b"o" * 32)
CERTIFICATES = Credentials(key=None, key_id=b"authority", source="certificate authority ca.pem")
HASH = b"c" * 32


def side(
    *,
    dialled: bool,
    credentials: Credentials = SECRET,
    role: Role | None = None,
    nonce: bytes = b"",
    group: str = "",
    name: str = "",
    admin: Credentials | None = None,
    **channel: object,
) -> Handshake:
    role = role or (Role.SCHEDULER if dialled else Role.NODE)
    identity = Identity(
        ProcessId(("d" if dialled else "l") * 32),
        role,
        name or ("lap" if dialled else "n1"),
        credentials,
        group,
        admin_keys=admin,
    )
    where = "10.0.0.2:9701" if dialled else "10.0.0.7"
    made = Handshake(
        identity,
        Channel(where, HASH, **channel),  # type: ignore[arg-type]
        dialled,
        nonce or (b"D" if dialled else b"L") * 32,
    )
    made.start()
    return made


def headers(one: Handshake) -> list[bytes]:
    out = []
    for data in one.data_to_send():
        header_size, payload_size = LENGTHS.unpack_from(data)
        assert payload_size == 0
        assert len(data) == LENGTHS.size + header_size
        out.append(data[LENGTHS.size :])
    return out


@dataclass
class Run:
    """What came of a handshake: what was said, and how each side ended."""

    said: list[object]
    errors: dict[str, HandshakeRejected]


def run(dialler: Handshake, listener: Handshake) -> Run:
    result = Run([], {})
    progress = True
    while progress:
        progress = False
        for name, source, target in (("listener", dialler, listener), ("dialler", listener, dialler)):
            for header in headers(source):
                progress = True
                result.said.append(msgspec.msgpack.decode(header, type=module._AnyHandshake))
                try:
                    target.receive(header)
                except HandshakeRejected as error:
                    result.errors[name] = error
    return result


def decode(header: bytes) -> object:
    return msgspec.msgpack.decode(header, type=module._AnyHandshake)


def test_two_that_share_a_secret_agree() -> None:
    dialler, listener = side(dialled=True), side(dialled=False)
    result = run(dialler, listener)
    assert result.errors == {}
    assert [type(message) for message in result.said] == [Hello, Challenge, Proof, Welcome]
    assert dialler.peer is not None
    assert listener.peer is not None
    assert (dialler.peer.process, dialler.peer.role, dialler.peer.name) == ("l" * 32, Role.NODE, "n1")
    assert (listener.peer.process, listener.peer.role, listener.peer.name) == (
        "d" * 32,
        Role.SCHEDULER,
        "lap",
    )
    assert "jobs" in listener.peer.capabilities


def test_the_secret_does_not_travel_and_each_side_proves_differently() -> None:
    said = run(side(dialled=True), side(dialled=False)).said
    assert all(SECRET.key not in msgspec.msgpack.encode(message) for message in said)  # type: ignore[operator]
    proof, welcome = said[2:]
    assert isinstance(proof, Proof)
    assert isinstance(welcome, Welcome)
    assert len(proof.mac) == len(welcome.mac) == 32
    assert proof.mac != welcome.mac


def test_a_long_name_leaves_room_in_the_limit() -> None:
    assert len(headers(side(dialled=True, name="ü" * 400))[0]) < HANDSHAKE_LIMIT / 2


@pytest.mark.parametrize(
    ("dialler", "listener", "reason", "says"),
    [
        ({}, {"credentials": OTHER_SECRET}, "secret", "has another secret; make them equal with `dispy secret"),
        ({}, {"group": "lab"}, "group", "belongs to another group; start both with the same --group"),
        ({}, {"accept": frozenset({Role.CLIENT})}, "role", ""),
        ({"credentials": CERTIFICATES, "verified": True}, {}, "secret", "secret"),
        (
            {"credentials": CERTIFICATES, "verified": True},
            {"credentials": CERTIFICATES, "verified": False},
            "certificate",
            "certificate",
        ),
        (
            {"credentials": CERTIFICATES, "verified": True},
            {"credentials": CERTIFICATES, "verified": True, "certified": frozenset({Role.NODE, Role.PEER})},
            "role",
            "certificate",
        ),
    ],
    ids=["secret", "group", "role", "certificate or secret", "no certificate", "role of certificate"],
)
def test_both_sides_say_why_they_do_not_fit(
    dialler: dict[str, object], listener: dict[str, object], reason: str, says: str
) -> None:
    result = run(side(dialled=True, **dialler), side(dialled=False, **listener))  # type: ignore[arg-type]
    assert {name: error.reason for name, error in result.errors.items()} == {
        "dialler": reason,
        "listener": reason,
    }
    assert str(result.errors["dialler"]).startswith("node n1 (10.0.0.2:9701) ")
    assert str(result.errors["listener"]).startswith("a program on lap (10.0.0.7) ")
    assert all(says in str(error) for error in result.errors.values())


def test_another_protocol_is_told_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    dialler = side(dialled=True)
    listener = side(dialled=False)
    monkeypatch.setattr(module, "PROTOCOL", PROTOCOL + 1)
    (hello,) = headers(dialler)
    with pytest.raises(HandshakeRejected, match=f"lap .* speaks protocol {PROTOCOL}, this side {PROTOCOL + 1}"):
        listener.receive(hello)
    monkeypatch.undo()
    (refused,) = headers(listener)
    with pytest.raises(HandshakeRejected, match=f"n1 .* speaks protocol {PROTOCOL + 1}, this side {PROTOCOL}"):
        dialler.receive(refused)


def test_the_dialler_checks_the_listener_too() -> None:
    dialler, listener = side(dialled=True), side(dialled=False, credentials=OTHER_SECRET)
    (hello,) = headers(dialler)
    claim = msgspec.structs.replace(decode(hello), key_id=OTHER_SECRET.key_id)  # type: ignore[type-var]
    listener.receive(msgspec.msgpack.encode(claim))
    with pytest.raises(HandshakeRejected, match="another secret"):
        dialler.receive(headers(listener)[0])
    (refused,) = headers(dialler)
    assert decode(refused) == Refused("secret", PROTOCOL, "scheduler", "lap")


def test_an_unknown_refusal_of_a_later_version_is_shown() -> None:
    dialler = side(dialled=True)
    with pytest.raises(HandshakeRejected, match=r"node n1 .* refused the connection \(quota\)"):
        dialler.receive(msgspec.msgpack.encode(Refused("quota", PROTOCOL, "node", "n1")))


def test_a_stranger_without_a_name_is_shown_as_one() -> None:
    dialler = side(dialled=True)
    with pytest.raises(HandshakeRejected, match=r"node \? .* belongs to another group"):
        dialler.receive(msgspec.msgpack.encode(Refused("group", PROTOCOL, "node", "")))


def test_a_refused_proof_is_told_with_what_may_be_the_cause() -> None:
    dialler = side(dialled=True)
    with pytest.raises(HandshakeRejected, match="could not verify that this side knows the secret"):
        dialler.receive(msgspec.msgpack.encode(Refused("proof", PROTOCOL, "node", "n1")))


def test_knowing_the_key_id_is_not_knowing_the_secret() -> None:
    impostor = msgspec.structs.replace(OTHER_SECRET, key_id=SECRET.key_id)
    result = run(side(dialled=True, credentials=impostor), side(dialled=False))
    assert {name: error.reason for name, error in result.errors.items()} == {
        "dialler": "proof",
        "listener": "proof",
    }
    assert "could not prove that it knows the secret" in str(result.errors["listener"])


def test_a_listener_that_cannot_prove_itself_is_refused() -> None:
    dialler = side(dialled=True)
    listener = side(dialled=False)
    listener.receive(headers(dialler)[0])
    dialler.receive(headers(listener)[0])
    with pytest.raises(HandshakeRejected, match=r"n1 .* could not prove"):
        dialler.receive(msgspec.msgpack.encode(Welcome(b"x" * 32)))
    assert dialler.peer is None


@pytest.mark.parametrize("mac", [b"", b"x" * 32, b"short"])
def test_an_empty_or_wrong_proof_opens_nothing(mac: bytes) -> None:
    listener = side(dialled=False)
    listener.receive(headers(side(dialled=True))[0])
    with pytest.raises(HandshakeRejected) as caught:
        listener.receive(msgspec.msgpack.encode(Proof(mac)))
    assert caught.value.reason == "proof"
    assert listener.peer is None


def test_a_man_in_the_middle_has_another_certificate() -> None:
    """He passes everything on unchanged, but each side sees (or has) a certificate that the other does not."""
    dialler = side(dialled=True)
    listener = side(dialled=False)
    dialler.channel = msgspec.structs.replace(dialler.channel, certificate_hash=b"m" * 32)
    result = run(dialler, listener)
    assert result.errors["listener"].reason == "proof"
    assert dialler.peer is None
    assert listener.peer is None


def test_a_mirror_learns_nothing_it_can_use() -> None:
    """Everything that the dialler says is sent back to it in the role of the listener."""
    dialler = side(dialled=True, role=Role.NODE)
    (hello,) = headers(dialler)
    mirrored = ["Challenge", *_elements(hello)]
    dialler.receive(msgspec.msgpack.encode(mirrored))
    (proof,) = headers(dialler)
    answer = decode(proof)
    assert isinstance(answer, Proof)
    with pytest.raises(HandshakeRejected):
        dialler.receive(msgspec.msgpack.encode(Welcome(answer.mac)))
    assert dialler.peer is None


def _elements(header: bytes) -> list[object]:
    return list(msgspec.structs.astuple(decode(header)))  # type: ignore[arg-type]


def test_a_proof_is_good_for_one_pair_of_nonces() -> None:
    dialler, listener = side(dialled=True), side(dialled=False)
    hello = headers(dialler)[0]
    listener.receive(hello)
    dialler.receive(headers(listener)[0])
    (proof,) = headers(dialler)
    second = side(dialled=False, nonce=b"2" * 32)
    second.receive(hello)
    with pytest.raises(HandshakeRejected):
        second.receive(proof)
    listener.receive(proof)
    assert listener.peer is not None


def test_a_proof_is_good_for_one_role() -> None:
    """Somebody in the middle of one connection turns a node into a scheduler in what he passes on."""
    dialler, listener = side(dialled=True, role=Role.NODE), side(dialled=False)
    claim = msgspec.structs.replace(decode(headers(dialler)[0]), role="scheduler")  # type: ignore[type-var]
    listener.receive(msgspec.msgpack.encode(claim))
    dialler.receive(headers(listener)[0])
    with pytest.raises(HandshakeRejected):
        listener.receive(headers(dialler)[0])


def test_verified_certificates_alone_authenticate() -> None:
    sides = [side(dialled=d, credentials=CERTIFICATES, verified=True) for d in (True, False)]
    assert run(*sides).errors == {}
    assert all(one.peer is not None for one in sides)


def test_steps_come_in_order() -> None:
    with pytest.raises(RemoteProtocolError, match="Proof where the handshake is at hello"):
        side(dialled=False).receive(msgspec.msgpack.encode(Proof(b"")))
    with pytest.raises(RemoteProtocolError, match="Welcome"):
        side(dialled=True).receive(msgspec.msgpack.encode(Welcome(b"")))
    dialler, listener = side(dialled=True), side(dialled=False)
    run(dialler, listener)
    with pytest.raises(RemoteProtocolError, match="done"):
        listener.receive(headers(side(dialled=True))[0])


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x91\xa5Hello", b"\x92\xa5Proof\xa1x", b"GET / HTTP/1.1"])
def test_garbage_is_no_handshake(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="no handshake of dispy"):
        side(dialled=False).receive(header)


def test_nonces_have_their_full_length() -> None:
    (hello,) = headers(side(dialled=True))
    short = Hello(*_elements(hello)[:-1], b"n" * 31)  # type: ignore[call-arg, arg-type]
    with pytest.raises(RemoteProtocolError):
        side(dialled=False).receive(msgspec.msgpack.encode(short))
    with pytest.raises(LocalProtocolError):
        side(dialled=True, nonce=b"n")


def test_what_a_later_protocol_appends_is_ignored() -> None:
    (hello,) = headers(side(dialled=True))
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(hello), "more"])
    listener = side(dialled=False)
    listener.receive(longer)
    assert isinstance(decode(headers(listener)[0]), Challenge)


def test_names_of_strangers_cannot_play_with_the_terminal() -> None:
    dialler = side(dialled=True, credentials=OTHER_SECRET, name="\x1b[31mevil\n" + "x" * 200)
    with pytest.raises(HandshakeRejected) as caught:
        side(dialled=False).receive(headers(dialler)[0])
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


ADMIN = credentials_from_key(b"a" * 32)


def test_an_admin_proves_the_admin_secret_and_nothing_else() -> None:
    result = run(side(dialled=True, credentials=ADMIN, role=Role.ADMIN), side(dialled=False, admin=ADMIN))
    assert result.errors == {}
    for dialler in (
        {"credentials": SECRET, "role": Role.ADMIN},
        {"credentials": OTHER_SECRET, "role": Role.ADMIN},
        {"credentials": ADMIN, "role": Role.SCHEDULER},
    ):
        result = run(side(dialled=True, **dialler), side(dialled=False, admin=ADMIN))  # type: ignore[arg-type]
        assert {error.reason for error in result.errors.values()} == {"secret"}
        asked = "another admin secret" if dialler["role"] is Role.ADMIN else "another secret"
        assert all(asked in str(error) for error in result.errors.values())


def test_knowing_the_key_id_of_admins_is_not_knowing_their_secret() -> None:
    impostor = msgspec.structs.replace(SECRET, key_id=ADMIN.key_id)
    result = run(side(dialled=True, credentials=impostor, role=Role.ADMIN), side(dialled=False, admin=ADMIN))
    assert {error.reason for error in result.errors.values()} == {"proof"}


def test_without_an_admin_secret_there_are_no_admins() -> None:
    result = run(side(dialled=True, role=Role.ADMIN), side(dialled=False))
    assert {error.reason for error in result.errors.values()} == {"role"}
    assert "start it with --admin_secret" in str(result.errors["dialler"])


def test_where_certificates_authenticate_admins_prove_their_secret_too() -> None:
    dialler = side(dialled=True, credentials=ADMIN, role=Role.ADMIN, verified=True)
    listener = side(dialled=False, credentials=CERTIFICATES, verified=True, admin=ADMIN)
    assert run(dialler, listener).errors == {}
    dialler = side(dialled=True, credentials=CERTIFICATES, role=Role.ADMIN, verified=True)
    listener = side(dialled=False, credentials=CERTIFICATES, verified=True, admin=ADMIN)
    assert {error.reason for error in run(dialler, listener).errors.values()} == {"secret"}
