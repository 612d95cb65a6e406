"""The door to links: everything that other rooms need for talking to another process.

A process that is reached by two links, one dialled by each side, should keep `better_link` of the two.
"""

from __future__ import annotations

from dispy.wire.connection import Link, LinkHandler
from dispy.wire.dialler import Dialler, dial
from dispy.wire.listener import BROKEN_OFF, Listener
from dispy.wire.parties import LinkSettings, Peer

__all__ = [
    "BROKEN_OFF",
    "Dialler",
    "Link",
    "LinkHandler",
    "LinkSettings",
    "Listener",
    "Peer",
    "better_link",
    "dial",
]


def better_link(first: Link, second: Link) -> Link:
    """Which of two links to the same process stays; both processes come to the same answer.

    It is the one that the smaller process id dialled; of two that the same side dialled, the second.
    """
    if first.dialled == second.dialled:
        return second
    smaller_is_here = first.settings.process < first.peer.process
    return first if first.dialled == smaller_is_here else second
