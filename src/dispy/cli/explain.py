"""`dispy explain`: where a job submitted on this machine would run now, or why it would wait.

0: a node that answers would run it; 1: it would wait; 2: the command line is wrong; 3: only this machine would run it,
by a node of its own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from dispy import settings
from dispy.cli.nodes import NodeSeen, Survey, take_survey
from dispy.cli.options import NORMALIZED, Connection, connection_options, take_connection

if TYPE_CHECKING:
    from dispy.scheduler.jobs import Shape

RUNS: Final = 0
WAITS: Final = 1
HERE: Final = 3
VERDICTS: Final = {RUNS: "runs", WAITS: "waits", HERE: "here"}


@dataclass(slots=True)
class Explanation:
    """What is to be said: one line for each node, then the sentences that decide."""

    code: int
    sentences: list[str]
    nodes: list[tuple[NodeSeen, str, str]] = field(default_factory=list)
    """Each with its state (`free`, `busy`, `unfit`, `unsure`, `closed`, `unused`, `unreachable`) and the reason."""


@click.command(short_help="Say where a job would run now, or why it would wait.", context_settings=NORMALIZED)
@click.option("-n", "--nodes", multiple=True, metavar="NODE,…", help="As of a program's nodes (DISPY_NODES); repeat.")
@click.option("-c", "--cpus", metavar="N", help="CPUs that the job asks for, or `all`.")
@click.option("-m", "--memory", metavar="SIZE", help="Memory that it asks for: 4GB, 512MiB.")
@click.option("--gpus", type=int, metavar="N", help="GPUs that it asks for.")
@click.option("--tags", metavar="TAG,…", help="Tags that its node must have.")
@click.option("--program", is_flag=True, help="It runs a program: any Python will do.")
@connection_options
@click.option(
    "-w",
    "--wait",
    type=click.FloatRange(0.1, 60),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Seconds to listen.",
)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(
    nodes: tuple[str, ...],
    cpus: str | None,
    memory: str | None,
    gpus: int | None,
    tags: str | None,
    program: bool,
    wait: float,
    as_json: bool,
    **options: Any,
) -> NoReturn:
    """Say where a job submitted on this machine would run now, or why it would wait.

    The exit code is 0 if a node that answers would run it, 3 if only a node that the program starts on this machine
    would, 1 if it would wait.
    """
    connection = take_connection(options)
    named = [name for value in nodes for name in settings.names(value)]
    named = named or list(settings.names(settings.variable("DISPY_NODES")))
    shape = _shape(cpus, memory, gpus, tags)
    hosts = [name for name in named if "*" not in name and name != "local"]
    survey = asyncio.run(take_survey(connection, hosts, wait))
    found = judge(survey, connection, shape, named, python="" if program else _own_python())
    if as_json:
        _print_json(found, survey)
    else:
        _print_text(found)
    sys.exit(found.code)


def _shape(cpus: str | None, memory: str | None, gpus: int | None, tags: str | None) -> Shape:
    from dispy.errors import SettingsError
    from dispy.joboptions import PREFIX, take_options
    from dispy.scheduler.jobs import Shape

    given: dict[str, Any] = {}
    if cpus is not None:
        given["dispy_cpus"] = int(cpus) if cpus.isdecimal() else cpus
    if memory is not None:
        given["dispy_memory"] = memory
    if gpus is not None:
        given["dispy_gpus"] = gpus
    if tags is not None:
        given["dispy_tags"] = list(settings.names(tags))
    try:
        options = take_options(given)
    except SettingsError as error:
        text = str(error).removeprefix(f"submit: {PREFIX}")
        raise click.BadParameter(f"--{text}") from error
    return Shape() if options is None else Shape("", options.cpus, options.memory, options.gpus, options.tags)


def _own_python() -> str:
    return f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"


def judge(survey: Survey, connection: Connection, shape: Shape, named: Sequence[str], *, python: str) -> Explanation:
    """Find out from one look at the network what would become of a job."""
    from dispy.scheduler.prospects import joined, wishes

    names = {node.name for node in survey.nodes if node.info is not None}
    # what is named by a node's own name is no address, and needs none: that node was found
    seen = [node for node in survey.nodes if node.info is not None or node.name not in names]
    nodes = [(node, *_state(node, shape, named, python)) for node in seen]
    free = [node for node, state, _ in nodes if state == "free"]
    wanted = wishes(shape)
    job = f"A job that asks for {wanted}" if wanted else "A job"
    if free:
        sentence = f"{job} would run now on {joined(_label(node) for node in free)}."
        return Explanation(RUNS, [sentence], nodes)
    if list(named) == ["local"] and not _why_not_here(shape):
        return Explanation(HERE, [f"{job} would run on this machine, by a node of its own."], nodes)
    considered = [entry for entry in nodes if entry[1] != "unused"]
    sentences = _account(survey, connection, answered=bool(considered))
    if considered:
        why = "; ".join(f"{node.name} {reason}" for node, _, reason in considered)
        return Explanation(WAITS, [f"{job} would wait: {why}.", *sentences], nodes)
    if _starts_one_here(named) and not (reason := _why_not_here(shape)):
        return Explanation(HERE, [*sentences, f"{job} would run on this machine, by a node of its own."], nodes)
    if not _starts_one_here(named):
        local = "other nodes are named (--nodes, DISPY_NODES)"
        if list(named) in ([], ["*"]):
            local = "DISPY_LOCAL=never forbids it"
        reason = f"no node answers, and none is started on this machine: {local}"
    return Explanation(WAITS, [*sentences, f"{job} would wait: {reason}."], nodes)


def _state(node: NodeSeen, shape: Shape, named: Sequence[str], python: str) -> tuple[str, str]:
    """How a node stands to a job, in a word, and why, as the end of a sentence about it."""
    from dispy.nodes import NodeView, parse_nodes
    from dispy.scheduler.prospects import why_closed, why_never, why_not_now, why_unsure

    info = node.info
    if info is None:
        return "unreachable", f"cannot be reached: {node.problem}"
    items, local = parse_nodes(list(named) or None)
    places = ((node.address, node.port), *node.others)
    view = NodeView(info.process, info, node.address, node.port, places=places)
    if node.relay is not None:
        view.relays = (node.relay,)
    if (local and not items) or not any(view.fits(item) or view.is_behind(item) for item in items):
        return "unused", "is not among the nodes that are to be used"
    if reason := why_never(info, shape):
        return "unfit", reason
    if reason := why_not_now(info):
        return ("closed" if why_closed(info) else "busy"), reason
    if reason := why_unsure(info, python):
        return "unsure", reason
    return "free", ""


def _account(survey: Survey, connection: Connection, *, answered: bool) -> list[str]:
    from dispy.scheduler.prospects import Soundings, account
    from dispy.wire.interfaces import is_own

    return account(
        Soundings(
            tried=survey.tried,
            port=connection.base_port + settings.NODE_PORT_OFFSET,
            answered=answered,
            missing=survey.missing,
            refusals={refusal.address: refusal.reason for refusal in survey.refusals},
            own={refusal.address for refusal in survey.refusals if is_own(refusal.address)},
            by_certificate=connection.credentials().key is None,
        )
    )


def _starts_one_here(named: Sequence[str]) -> bool:
    if "local" in named:
        return True
    return list(named) in ([], ["*"]) and settings.variable("DISPY_LOCAL") != "never"


def _why_not_here(shape: Shape) -> str:
    """Why a node on this machine could not run it; empty when it could."""
    from dispy.model import NodeInfo, ProcessId
    from dispy.node import vitals
    from dispy.scheduler.prospects import why_never

    here = NodeInfo(ProcessId(""), "", vitals.usable_cpus(), "", (), vitals.main_memory())
    reason = why_never(here, shape)
    return f"no node answers, and one on this machine {reason}" if reason else ""


def _label(node: NodeSeen) -> str:
    return node.name if node.name == node.address else f"{node.name} ({node.address})"


def _print_text(found: Explanation) -> None:
    from dispy.words import counted

    for node, state, reason in found.nodes:
        if state == "unused" and found.code == HERE:
            continue
        what = reason
        if state == "free" and (info := node.info) is not None:
            absence = info.holder.absence if info.holder is not None else ""
            what = f"is free, {counted(info.cpus, 'CPU')}{f' (its last user: {absence})' if absence else ''}"
        click.echo(f"{_label(node)} {what}")
    for sentence in found.sentences:
        click.echo(sentence)


def _print_json(found: Explanation, survey: Survey) -> None:
    import json

    shown = {
        "verdict": VERDICTS[found.code],
        "sentences": found.sentences,
        "nodes": [
            {"name": node.name, "address": node.address, "port": node.port, "state": state, "reason": reason}
            for node, state, reason in found.nodes
        ],
        "refused": [
            {"name": refusal.name, "address": refusal.address, "reason": refusal.reason} for refusal in survey.refusals
        ],
        "tried": survey.tried,
    }
    click.echo(json.dumps(shown))
