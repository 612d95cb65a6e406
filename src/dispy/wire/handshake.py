"""How two processes prove to each other, inside TLS, that they know the same secret. Pure.

    dialler                                  listener
      Hello    who I am, key id, nonce  →
                                        ←    Challenge  who I am, key id, nonce
      Proof    MAC                      →
                                        ←    Welcome    MAC              (or Refused instead, at any step)

Both MACs are HMAC-SHA-256 over the protocol number, the SHA-256 of the listener's certificate as this side knows
it, and the very bytes of Hello and Challenge: nonces, roles, processes. The key depends on who proves (dialler or
listener) and on the role, so nothing can be mirrored; a man in the middle fails because he has another certificate.
When certificates alone authenticate (no key), TLS has verified both before the first byte and the MACs are empty.
Nobody is believed before the proof: what stands in Hello is shown to people as printable text, nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum, StrEnum
from typing import Annotated, Final, NoReturn, Protocol

import msgspec
from msgspec import Struct

from dispy.errors import AuthenticationRejected, LocalProtocolError, RemoteProtocolError
from dispy.model import ProcessId, Role
from dispy.wire.frames import LENGTHS
from dispy.wire.messages import CAPABILITIES, PROTOCOL

HANDSHAKE_LIMIT: Final = 4096
"""Bytes that a peer may send before it has proved itself: two frames of a few hundred bytes."""
NONCE_SIZE: Final = 32
_NAME_SHOWN: Final = 64

_Text = Annotated[str, msgspec.Meta(max_length=255)]
_Capabilities = Annotated[tuple[_Text, ...], msgspec.Meta(max_length=64)]
_Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]
_Digest = Annotated[bytes, msgspec.Meta(max_length=32)]


class HandshakeMessage(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Base of the messages before authentication. What a later protocol appends is ignored."""


class Hello(HandshakeMessage, frozen=True):
    """The dialler says who it claims to be."""

    protocol: int
    capabilities: _Capabilities
    process: _Text
    role: _Text
    name: _Text
    group: _Digest
    key_id: _Digest
    nonce: _Nonce


class Challenge(HandshakeMessage, frozen=True):
    """The listener says who it claims to be."""

    protocol: int
    capabilities: _Capabilities
    process: _Text
    role: _Text
    name: _Text
    group: _Digest
    key_id: _Digest
    nonce: _Nonce


class Proof(HandshakeMessage, frozen=True):
    """The dialler proves itself."""

    mac: _Digest


class Welcome(HandshakeMessage, frozen=True):
    """The listener proves itself; from the next byte on the link is open."""

    mac: _Digest


class Refusal(StrEnum):
    """Why a link is refused."""

    PROTOCOL = "protocol"
    GROUP = "group"
    SECRET = "secret"
    ROLE = "role"
    PROOF = "proof"
    CERTIFICATE = "certificate"


class Refused(HandshakeMessage, frozen=True):
    """No link, and why. Not authenticated: it is text for people, and it ends this attempt."""

    reason: _Text
    protocol: int
    role: _Text
    name: _Text


_AnyHandshake = Hello | Challenge | Proof | Welcome | Refused
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[_AnyHandshake]] = msgspec.msgpack.Decoder(_AnyHandshake)


class Keys(Protocol):
    """What the handshake needs of `dispy.secrets.Credentials`."""

    @property
    def key(self) -> bytes | None:
        """The master key, or None when certificates alone authenticate."""

    @property
    def key_id(self) -> bytes:
        """Names the secret without telling it."""

    def derive(self, purpose: str) -> bytes:
        """A key for one purpose."""


class Identity(Struct, frozen=True):
    """Who this process is on its links."""

    process: ProcessId
    role: Role
    name: str
    keys: Keys
    group: str = ""
    capabilities: tuple[str, ...] = CAPABILITIES
    admin_keys: Keys | None = None
    """What a dialler must know that comes as admin; None: there are no admin links to this process."""


class Channel(Struct, frozen=True):
    """What is known of the connection on which a handshake takes place."""

    where: str
    """Address of the other side, for sentences."""
    certificate_hash: bytes
    """SHA-256 of the listener's certificate: as seen by the dialler, as owned by the listener."""
    verified: bool = False
    """TLS has verified the other side's certificate."""
    certified: frozenset[Role] | None = None
    """Roles that the other side's certificate allows; None: any."""
    accept: frozenset[Role] = frozenset(Role)
    """Roles that this side talks to here."""
    is_loopback: bool = False
    """The other side is on this machine."""


class ProvenPeer(Struct, frozen=True):
    """The other side, after it has proved itself."""

    process: ProcessId
    role: Role
    name: str
    capabilities: frozenset[str]


class _Step(Enum):
    HELLO = "hello"
    CHALLENGE = "challenge"
    PROOF = "proof"
    WELCOME = "welcome"
    DONE = "done"
    FAILED = "failed"


class HandshakeRejected(AuthenticationRejected):
    """The handshake ended with a refusal, by this side or the other; the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Handshake:
    """One side of one handshake. Feed whole frames' headers to `receive`; send what `data_to_send` gives."""

    def __init__(self, identity: Identity, channel: Channel, dialled: bool, nonce: bytes) -> None:
        self.identity = identity
        self.channel = channel
        self.dialled = dialled
        self.nonce = nonce
        self.peer: ProvenPeer | None = None
        """Set once both sides have proved themselves."""
        self._claimed: Hello | Challenge | None = None
        self._keys = identity.keys
        """Those of this link: an admin proves another secret than everybody else."""
        self._hello = self._challenge = b""
        self._step = _Step.HELLO
        self._out: list[bytes] = []

    def start(self) -> None:
        """Say hello, if this side dialled. Call it once, first."""
        if len(self.nonce) != NONCE_SIZE:
            raise LocalProtocolError(f"a nonce has {NONCE_SIZE} bytes, not {len(self.nonce)}")
        if self.dialled:
            self._hello = self._send(Hello(*self._claim()))
            self._step = _Step.CHALLENGE

    def data_to_send(self) -> list[bytes]:
        """Frames to send now."""
        out, self._out = self._out, []
        return out

    def receive(self, header: bytes) -> None:
        """Deal with one frame of the other side. `peer` is set when the handshake is done.

        Raises:
            HandshakeRejected: one of the two does not want the other (send `data_to_send()` all the same).
            RemoteProtocolError: this is not our handshake.
        """
        try:
            message = _decoder.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"what it sent is no handshake of dispy ({error})") from error
        match message, self._step:
            case Hello(), _Step.HELLO:
                self._on_hello(message, header)
            case Challenge(), _Step.CHALLENGE:
                self._on_challenge(message, header)
            case Proof(), _Step.PROOF:
                self._on_proof(message)
            case Welcome(), _Step.WELCOME:
                self._on_welcome(message)
            case Refused(), _Step.CHALLENGE | _Step.PROOF | _Step.WELCOME:
                self._step = _Step.FAILED
                raise HandshakeRejected(message.reason, self._sentence_of(message))
            case _:
                raise RemoteProtocolError(
                    f"it sent {type(message).__name__} where the handshake is at {self._step.value}"
                )

    def _on_hello(self, hello: Hello, header: bytes) -> None:
        self._claimed = hello
        self._hello = header
        if hello.role == Role.ADMIN:
            if self.identity.admin_keys is None:
                self._refuse(Refusal.ROLE, "connects as admin, which this process allows nobody (--admin_secret)")
            self._keys = self.identity.admin_keys
        self._check(hello)
        self._challenge = self._send(Challenge(*self._claim()))
        self._step = _Step.PROOF

    def _on_challenge(self, challenge: Challenge, header: bytes) -> None:
        self._claimed = challenge
        self._challenge = header
        self._check(challenge)
        self._send(Proof(self._mac("dialler", self.identity.role)))
        self._step = _Step.WELCOME

    def _on_proof(self, proof: Proof) -> None:
        claimed = self._check_mac("dialler", proof.mac)
        self._send(Welcome(self._mac("listener", self.identity.role)))
        self._finish(claimed)

    def _on_welcome(self, welcome: Welcome) -> None:
        self._finish(self._check_mac("listener", welcome.mac))

    def _finish(self, claimed: Hello | Challenge) -> None:
        self._step = _Step.DONE
        self.peer = ProvenPeer(
            ProcessId(claimed.process), Role(claimed.role), claimed.name, frozenset(claimed.capabilities)
        )

    def _claim(self) -> tuple[int, tuple[str, ...], str, str, str, bytes, bytes, bytes]:
        own = self.identity
        name = own.name[:255]
        return (
            PROTOCOL,
            own.capabilities,
            own.process,
            own.role.value,
            name,
            group_hash(own.group),
            self._keys.key_id,
            self.nonce,
        )

    def _check(self, claimed: Hello | Challenge) -> None:
        """What can be said before any proof; the order is that of what helps people most."""
        if claimed.protocol != PROTOCOL:
            self._refuse(Refusal.PROTOCOL, f"speaks protocol {claimed.protocol}, this side {PROTOCOL}; {_SAME_VERSION}")
        if claimed.group != group_hash(self.identity.group):
            self._refuse(Refusal.GROUP, _OTHER_GROUP)
        if claimed.key_id != self._keys.key_id:
            self._refuse(Refusal.SECRET, self._other_secret())
        if self._keys.key is None and not self.channel.verified:
            self._refuse(Refusal.CERTIFICATE, "shows no certificate that could be verified")
        allowed = self.channel.accept
        if self.channel.certified is not None and claimed.role not in self.channel.certified:
            needs = "; it needs one that `dispy cert scheduler` makes" if claimed.role == Role.SCHEDULER else ""
            self._refuse(Refusal.ROLE, f"has a certificate that is not for a {_printable(claimed.role)}{needs}")
        if claimed.role not in allowed:
            self._refuse(Refusal.ROLE, f"connects as {_printable(claimed.role)}, {self._why_no_business(claimed.role)}")

    def _why_no_business(self, role: str) -> str:
        if role == Role.NODE and self.identity.role is Role.SCHEDULER and Role.CLIENT in self.channel.accept:
            return _PORT_FOR_PROGRAMS
        return "which has no business with this process"

    def _other_secret(self) -> str:
        claimed = self._claimed
        if self.identity.role is Role.ADMIN or (claimed is not None and claimed.role == Role.ADMIN):
            return _OTHER_ADMIN_SECRET if self.identity.role is Role.ADMIN else _OTHER_ADMIN
        if self._keys.key is None:
            return _OTHER_CERTIFICATES
        if self.identity.role is Role.CLIENT:
            return _OTHER_CLIENT_SECRET
        return _OTHER_SECRET_HERE if self.channel.is_loopback else _OTHER_SECRET

    def _mac(self, side: str, role: str) -> bytes:
        keys = self._keys
        if keys.key is None:
            return b""
        transcript = hashlib.sha256(
            b"".join(
                (
                    b"dispy link %d\0" % PROTOCOL,
                    hashlib.sha256(self.channel.certificate_hash).digest(),
                    LENGTHS.pack(len(self._hello), len(self._challenge)),
                    self._hello,
                    self._challenge,
                )
            )
        ).digest()
        return hmac.digest(keys.derive(f"link proof of {side} as {role}"), transcript, "sha256")

    def _check_mac(self, side: str, mac: bytes) -> Hello | Challenge:
        claimed = self._claimed
        assert claimed is not None
        if not hmac.compare_digest(mac, self._mac(side, claimed.role)):
            self._refuse(Refusal.PROOF, _NO_PROOF)
        return claimed

    def _refuse(self, reason: Refusal, sentence: str) -> NoReturn:
        self._step = _Step.FAILED
        self._send(Refused(reason.value, PROTOCOL, self.identity.role.value, self.identity.name[:255]))
        claimed = self._claimed
        assert claimed is not None
        raise HandshakeRejected(reason.value, f"{self._who(claimed.role, claimed.name)} {sentence}")

    def _sentence_of(self, refused: Refused) -> str:
        who = self._who(refused.role, refused.name)
        match refused.reason:
            case Refusal.PROTOCOL:
                return f"{who} speaks protocol {refused.protocol}, this side {PROTOCOL}; {_SAME_VERSION}"
            case Refusal.GROUP:
                return f"{who} {_OTHER_GROUP}"
            case Refusal.SECRET:
                return f"{who} {self._other_secret()}"
            case Refusal.ROLE if self.identity.role is Role.ADMIN:
                return f"{who} {_NO_ADMINS}"
            case Refusal.ROLE if self.identity.role is Role.CLIENT and refused.role == Role.SCHEDULER:
                return f"{who} {_NO_CLIENTS}"
            case Refusal.ROLE if self.identity.role is Role.NODE and refused.role == Role.SCHEDULER:
                return f"{who} {_NO_NODES}"
            case Refusal.ROLE:
                own = self.identity.role.value
                return f"{who} does not talk to a {own}, or this side's certificate is not for one"
            case Refusal.PROOF:
                return f"{who} refused: it {_NO_PROOF_THERE}"
            case Refusal.CERTIFICATE:
                return f"{who} wants a certificate of its authority; give one with --certfile and --cafile"
            case _:
                return f"{who} refused the connection ({_printable(refused.reason)})"

    def _who(self, role: str, name: str) -> str:
        what = _printable(role)
        if role == Role.SCHEDULER:
            # people know their programs, and only the schedulers that they share
            what = "the scheduler on" if self.identity.role in {Role.CLIENT, Role.ADMIN} else "a program on"
        return f"{what} {_printable(name)} ({self.channel.where})"

    def _send(self, message: HandshakeMessage) -> bytes:
        header = _encoder.encode(message)
        self._out.append(LENGTHS.pack(len(header), 0) + header)
        return header


_OTHER_SECRET: Final = "has another secret; make them equal with `dispy secret show | ssh HOST dispy secret set`"
_OTHER_SECRET_HERE: Final = "has another secret; start both, here on this machine, with the same one"
_OTHER_ADMIN_SECRET: Final = "has another admin secret; give the one with which it was started (--admin_secret)"
_OTHER_CLIENT_SECRET: Final = (
    "has another secret for programs: that of its --cluster_secret, where it was given one, else that of its nodes; "
    "give this side the same (DISPY_SECRET, --secret, or by `dispy secret show` there and `dispy secret set` here)"
)
_OTHER_ADMIN: Final = "has another admin secret than this daemon, and was refused"
_NO_ADMINS: Final = (
    "takes no orders over the network; start it with --admin_secret (or this side's certificate is not for an admin)"
)
_NO_CLIENTS: Final = (
    "talks to nodes only at this port: it is a program with a JobCluster, or a dispyscheduler, which is reached two "
    "ports higher (9702 by default); or this side's certificate is not for a client"
)
_NO_NODES: Final = (
    "takes no nodes at this port: if it is a dispyscheduler, this is its port for programs, and nodes join it two "
    "ports lower (9700 by default); if this side has a certificate, it may not be one for a node"
)
_PORT_FOR_PROGRAMS: Final = (
    "but this is the port for programs: nodes join this scheduler two ports lower (--join HOST:PORT, 9700 by default)"
)
_OTHER_CERTIFICATES: Final = (
    "has other certificates, or a secret instead of them; give both sides certificates of one authority"
)
_OTHER_GROUP: Final = "belongs to another group; start both with the same --group"
_SAME_VERSION: Final = "install the same version of dispy on both"
_NO_PROOF: Final = "could not prove that it knows the secret, or somebody between the two intercepts the connection"
_NO_PROOF_THERE: Final = (
    "could not verify that this side knows the secret, or somebody between the two intercepts the connection"
)


def group_hash(group: str) -> bytes:
    """What is sent instead of the name of a group."""
    return hashlib.sha256(b"dispy group\0" + group.encode()).digest()[:8]


def _printable(text: str) -> str:
    """Text of an unproven stranger, safe for terminals and logs."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:_NAME_SHOWN])
    return shown or "?"
