"""Every exception of dispy, one tree.

    DispyError
      SettingsError (ValueError)      a parameter, option, variable or file of settings is not usable
        SecretError                   no usable secret, or a secret file that others can read
      ShippingError                   something of the user's program cannot travel to a node
      ClosedError                     the cluster (or its process) is closed
      JobFailed                       a call of `map` has no result, and no exception of its own to raise
      RecoveryError                   a recovery file is not usable, or in use
      StoreError                      what a shared scheduler keeps on its disk is not usable
      ProtocolError
        LocalProtocolError            our side asked for what the protocol does not allow: a bug here
        RemoteProtocolError           the other side sent what the protocol does not allow
      LinkError
        ConnectFailed                 nobody answered, or it broke before it was authenticated; try again
        AuthenticationRejected        secret, certificate, group or protocol differ; trying again cannot help
        LinkLost                      an authenticated link ended
      TransferError                   a blob could not be fetched, or its content is not what was promised
      NodeError                       the node cannot do what is asked: a port or directory that is taken, a full disk
        PortInUse                     another process listens there already
      InvalidTransition               a core was asked for an impossible change: a bug of ours

A failing job is not an exception: it is an outcome, and `DispyJob` shows it. What waits for results without a job in
the user's hands (`map`) raises what the function raised, or `JobFailed`.
"""

from __future__ import annotations


class DispyError(Exception):
    """Base of all errors that dispy raises on purpose."""


class SettingsError(DispyError, ValueError):
    """A parameter, command option, environment variable or settings file is not usable."""


class SecretError(SettingsError):
    """There is no usable secret, or its file can be read by others."""


class ShippingError(DispyError):
    """Something of the user's program cannot travel to a node; the message names it."""


class ClosedError(DispyError):
    """The cluster is closed, or belongs to another process (after a fork)."""


class JobFailed(DispyError):
    """A call has no result, and raised nothing that could be raised here: its worker died, its node was lost …"""

    def __init__(self, message: str, job: object = None) -> None:
        super().__init__(message)
        self.job = job
        """The `DispyJob` that carried it."""


class RecoveryError(DispyError):
    """A recovery file is not usable, is in use, or belongs to another secret; the message names it."""


class StoreError(DispyError):
    """What a shared scheduler keeps on its disk cannot be used: damaged, of another version, in use."""


class ProtocolError(DispyError):
    """The rules of the wire were broken."""


class LocalProtocolError(ProtocolError):
    """This side asked for something that the protocol does not allow now."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol does not allow."""


class LinkError(DispyError):
    """A connection to another process could not be made or kept."""


class ConnectFailed(LinkError):
    """Nobody answered, or the connection ended before it was authenticated; trying again can help."""

    def __init__(self, message: str, *, refused: bool = False, reason: str = "") -> None:
        super().__init__(message)
        self.refused = refused
        """The machine answers, and nothing listens at that port: the process is not there."""
        self.reason = reason
        """One word for counting."""


class AuthenticationRejected(LinkError):
    """Secret, certificate, group or protocol differ; trying again cannot help."""


class LinkLost(LinkError):
    """An authenticated link ended."""


class TransferError(DispyError):
    """A blob could not be fetched, or its content differs from its name."""


class NodeError(DispyError):
    """A node cannot start or cannot do what it is asked."""


class PortInUse(NodeError):
    """Another process listens at that port already."""

    def __init__(self, message: str, port: int) -> None:
        super().__init__(message)
        self.port = port


class InvalidTransition(DispyError):
    """A core was asked for a change of state that does not exist."""
