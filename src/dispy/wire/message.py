"""What all messages have in common."""

import msgspec


class Message(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Base of all messages."""
