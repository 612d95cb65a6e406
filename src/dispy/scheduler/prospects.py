"""What can be said of nodes before any of them works for us: who was asked, who refused, what one would do with a job.

Plain values in, sentences out: for the program that waits, and for `dispy explain`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from dispy.model import Holder, NodeInfo
from dispy.scheduler.jobs import Shape
from dispy.words import counted, size


class Soundings(Struct, frozen=True):
    """What looking for nodes has brought."""

    tried: Sequence[str] = ()
    """Where they were looked for, and what went wrong with that."""
    port: int = 0
    """Where nodes listen, UDP and TCP."""
    answered: bool = False
    """Whether there is a link to a node."""
    missing: str = ""
    """That interfaces which were asked for are not up, and which are."""
    unreachable: Sequence[tuple[str, str]] = ()
    """Places of nodes that were heard of and to which no link opens, and why."""
    unknown: Sequence[str] = ()
    """Names that were given and that no machine has, each as a sentence without its full stop."""
    refusals: Mapping[str, str] | None = None
    """Address → `secret`, `group`, `protocol` or a sentence: why the node there keeps apart from us."""
    is_explained: bool = False
    """Why no node is used is known, though it may have been said before: nothing is to be asked of people."""
    own: Collection[str] = ()
    """Those of the addresses that are of this machine."""
    by_certificate: bool = False
    """This side has no secret, but certificates alone."""
    local: str = ""
    """What became of the node on this machine, if one was to be started."""
    starting: bool = False
    """That node is on its way."""


def account(found: Soundings) -> list[str]:
    """Where nodes were looked for, who refused, and what can be done about it."""
    sentences = []
    if not found.answered and not found.starting:
        if found.tried and not (found.refusals or found.is_explained):
            sentences.append(f"No node has answered. Tried: {'; '.join(found.tried)}.")
            sentences.append(
                f"Is dispynode running there, and do firewalls let UDP and TCP port {found.port} in there, "
                f"and UDP from port {found.port} back in here?"
            )
        if found.missing:
            sentences.append(f"This program is told to use (DISPY_INTERFACES, host): {found.missing}.")
    sentences += [f"{why[:1].upper()}{why[1:]}." for why in found.unknown]
    for place, why in found.unreachable:
        sentences.append(f"A node says that it is at {place}, and no link opens: {why}; does its firewall let TCP in?")
    sentences += refusal_sentences(found.refusals or {}, by_certificate=found.by_certificate, own=found.own)
    if found.local:
        sentences.append(f"{found.local[:1].upper()}{found.local[1:]}.")
    return sentences


def refusal_sentences(
    refusals: Mapping[str, str], *, by_certificate: bool = False, own: Collection[str] = ()
) -> list[str]:
    """Who keeps apart from us, and how that is mended; addresses with the same reason together, `own` ones apart."""
    by_reason: dict[str, list[str]] = {}
    here = []
    for address, reason in refusals.items():
        if reason == "secret" and address in own and not by_certificate:
            here.append(address)
        else:
            by_reason.setdefault(reason, []).append(address)
    sentences = [f"{other_secret_here(', '.join(sorted(here)))}."] if here else []
    for reason, addresses in by_reason.items():
        where = ", ".join(sorted(addresses))
        machines = "1 machine runs" if len(addresses) == 1 else f"{len(addresses)} machines run"
        if reason == "secret" and by_certificate:
            sentences.append(
                f"{machines} dispynode with a secret or another certificate authority: {where}; "
                "give both sides certificates of one authority."
            )
        elif reason == "secret":
            host = addresses[0] if len(addresses) == 1 else "HOST"
            sentences.append(
                f"{machines} dispynode with another secret: {where}; make the secret equal "
                f"with `dispy secret show | ssh {host} dispy secret set`, and restart dispynode there."
            )
        elif reason == "group":
            sentences.append(f"{machines} dispynode in another group: {where}; give the same --group on both sides.")
        elif reason == "protocol":
            sentences.append(f"{machines} another version of dispy: {where}; install the same one here and there.")
        else:
            sentences.append(f"{where}: {reason}.")
    return sentences


def other_secret_here(addresses: str) -> str:
    """What is to be done when a node on this very machine has another secret."""
    return (
        f"dispynode on this machine ({addresses}) was started with another secret than this process; "
        "restart it with the same (`dispy secret show` prints it and says where it comes from)"
    )


# ---- one node and one job ----


def why_lacking(info: NodeInfo, shape: Shape) -> str:
    """What a node lacks for good for jobs of this shape, beside CPUs, as the end of a sentence; empty if nothing."""
    if lacking := [tag for tag in shape.tags if tag not in info.tags]:
        return f"does not have the tag{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
    if shape.gpus > info.gpus:
        return f"has {counted(info.gpus, 'GPU')}, not {shape.gpus}" if info.gpus else "has no GPU"
    if shape.memory > info.memory:
        return f"has {size(info.memory, like=shape.memory)} of memory, not {size(shape.memory)}"
    return ""


def why_closed(info: NodeInfo) -> str:
    """Why a node offers no CPU, as the end of a sentence; empty when it does."""
    if info.cpus:
        return ""
    return f"offers no CPU now: {info.closed}" if info.closed else "offers no CPU now"


def used_by(holder: Holder) -> str:
    """Who holds a node since when, as the end of a sentence."""
    since = f" since {datetime.fromtimestamp(holder.since, UTC).astimezone():%Y-%m-%d %H:%M:%S}" if holder.since else ""
    away = f": {holder.absence}; the next program gets the node when no job runs there" if holder.gone else ""
    return f"is used by {holder.user}@{holder.host} ({holder.program}, process {holder.pid}){since}{away}"


def why_never(info: NodeInfo, shape: Shape) -> str:
    """Why a node that says this of itself can never run jobs of this shape; empty when it can."""
    if reason := why_lacking(info, shape):
        return reason
    if info.cpus and shape.cpus > info.cpus and not info.oversubscribe:
        return f"has {counted(info.cpus, 'CPU')}, not {shape.cpus}"
    return ""


def why_not_now(info: NodeInfo) -> str:
    """Why it takes no job of ours now; empty when it does."""
    if reason := why_closed(info):
        return reason
    holder = info.holder
    if holder is None or (holder.gone and not holder.running):  # then whoever asks gets the node
        return ""
    return used_by(holder)


def why_unsure(info: NodeInfo, python: str) -> str:
    """Why it may be unable to run functions of this interpreter (`cpython-3.11`); empty when it surely has it."""
    if not python or python in info.pythons:
        return ""
    _, _, version = python.partition("-")
    there = ", ".join(info.pythons) or "none"
    return f"has Python {there}, not {python}: it refuses functions unless it finds python{version} on its PATH"


def wishes(shape: Shape) -> str:
    """What a job of this shape asks for, in words; empty when it takes its turn on any CPU."""
    parts = []
    if shape.cpus != 1:
        parts.append(f"{shape.cpus} CPUs" if shape.cpus else "all CPUs of a node")
    elif shape.is_heavy:
        parts.append("1 CPU")
    if shape.memory:
        parts.append(f"{size(shape.memory)} of memory")
    if shape.gpus:
        parts.append(counted(shape.gpus, "GPU"))
    if shape.tags:
        parts.append(f"the tag{'s' if len(shape.tags) > 1 else ''} {', '.join(shape.tags)}")
    return joined(parts)


def joined(parts: Iterable[str]) -> str:
    """A list as people write it: `a, b and c`."""
    listed = list(parts)
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
