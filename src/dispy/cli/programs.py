"""`dispy PROGRAM`: one job for each `-a`, on the nodes that answer; how they ended is the exit code.

0: every job ended with exit code 0; 1: some did not; 2: the command line is wrong; 130: interrupted, jobs cancelled.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dispy import settings
from dispy.cli.joboptions import job_options, take_job_options
from dispy.cli.options import NORMALIZED, Connection, connection_options, take_connection
from dispy.parameters import option_of_today

if TYPE_CHECKING:
    from dispy.cli.output import Output
    from dispy.job import DispyJob
    from dispy.making import AnyCluster

GLANCE_INTERVAL = 0.1
"""Seconds between looks at what has ended, for the progress display."""


class _ProgramContext(click.Context):
    @property
    def command_path(self) -> str:
        """Without the name of this command, which nobody types."""
        return self.parent.command_path if self.parent else "dispy"


class _ProgramCommand(click.Command):
    context_class = _ProgramContext


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    program: str
    arguments: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]
    scheduler: str | None
    nodes: tuple[str, ...]
    local: bool
    hosts: tuple[str, ...]
    reentrant: bool
    job_options: dict[str, Any]
    keep_files: bool
    json: bool
    debug: bool
    connection: Connection


def _split(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    try:
        return tuple(tuple(shlex.split(value)) for value in values)
    except ValueError as error:
        raise click.BadParameter(f"{error} (arguments are split as a shell does it)") from error


def _find(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if Path(value).is_file() or shutil.which(value):
        return value
    from dispy.cli import main

    hint = (
        f"; the command of that name comes first: dispy {value} …, its options behind it"
        if value in main.commands
        else ""
    )
    raise click.BadParameter(f"{value!r} is neither a file nor a program on the PATH{hint}")


def _no_more(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    if value:
        raise click.UsageError(
            f"arguments of a job stand behind -a, in one piece: dispy -a {shlex.quote(shlex.join(value))} PROGRAM"
        )


def _option_of_today(name: str) -> str:
    name = NORMALIZED["token_normalize_func"](name)
    if name in {"scheduler_node", "scheduler_host"}:
        click.echo(f"the option --{name} is called --scheduler now", err=True)
        return "scheduler"
    return option_of_today(name) if name == "ip_addr" else name


@click.command(
    "program",
    cls=_ProgramCommand,
    hidden=True,
    context_settings={**NORMALIZED, "max_content_width": 110, "token_normalize_func": _option_of_today},
)
@click.argument("program", callback=_find)
@click.argument("more", nargs=-1, expose_value=False, metavar="", callback=_no_more)
@click.option(
    "-a", "--args", "arguments", multiple=True, callback=_split, metavar="ARGS", help="Arguments of one job; repeat."
)
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, readable=True),
    metavar="PATH",
    help="File or folder that the jobs need beside the program; repeat.",
)
@click.option(
    "-n", "--nodes", multiple=True, metavar="NODE,…", help="Names, addresses or patterns (DISPY_NODES); repeat."
)
@click.option(
    "--scheduler",
    metavar="HOST[:PORT]",
    help="Use the nodes of the scheduler there, which programs share (DISPY_SCHEDULER).",
)
@click.option("--local", is_flag=True, help="Use this machine, by a node of its own.")
@click.option("-i", "--host", "hosts", multiple=True, metavar="HOST", help="Interface or address to use here; repeat.")
@job_options
@click.option("--reentrant", is_flag=True, help="Run jobs again whose node is lost.")
@connection_options
@click.option("-c", "--keep-files", is_flag=True, help="Leave the files on the nodes.")
@click.option("-j", "--json", is_flag=True, help="Print one JSON object per job.")
@click.option("-d", "--debug", is_flag=True, help="Say more (DISPY_DEBUG).")
def program(**options: Any) -> NoReturn:
    """Run PROGRAM on all nodes that answer, once for each -a (once without arguments if there is none)."""
    connection = take_connection(options)
    given = take_job_options(options)
    named = [name for value in options.pop("nodes") for name in settings.names(value)]
    options["scheduler"] = options["scheduler"] or settings.variable("DISPY_SCHEDULER")
    request = Request(
        nodes=tuple(named) or settings.names(settings.variable("DISPY_NODES")),
        connection=connection,
        job_options=given,
        **options,
    )
    sys.exit(_run(request))


def _run(request: Request) -> int:
    """Run the jobs and show how they end; returns the exit code."""
    from dispy.cli.output import make_output

    cluster = _open_cluster(request)
    jobs: list[DispyJob] = []
    output = make_output(as_json=request.json, jobs=len(request.arguments) or 1)
    finished = False
    with _ended_by_signal(), _left_when_interrupted_again(cluster):
        try:
            arguments = request.arguments or ((),)
            jobs += [cluster.submit(*words, **request.job_options) for words in arguments]
            _follow(cluster, list(zip(arguments, jobs, strict=True)), output)
            finished = True
        except _Interrupted as interrupted:
            cluster.end_jobs()
            click.echo("interrupted: the jobs are being cancelled (once more: do not wait for it)", err=True)
            return 128 + interrupted.signal
        finally:
            _close(cluster, terminate=not finished)
    if len(jobs) > 1 and not request.json:
        with redirect_stdout(sys.stderr):
            cluster.print_status()
    return 0 if output.failed == 0 else 1


def _open_cluster(request: Request) -> AnyCluster:
    import logging

    from dispy.cluster import JobCluster
    from dispy.errors import SettingsError
    from dispy.sharedcluster import SharedJobCluster

    connection = request.connection
    nodes = list(request.nodes)
    if request.local and request.scheduler:
        raise SettingsError(
            f"--local starts a node for this command alone, and the scheduler at {request.scheduler} has nodes of its "
            "own: leave out one of --local and --scheduler (or DISPY_SCHEDULER)"
        )
    if request.local:
        nodes.insert(0, "local")
    given: dict[str, Any] = {
        "nodes": nodes or None,
        "depends": list(request.files),
        "host": request.hosts or None,
        "reentrant": request.reentrant,
        "cleanup": not request.keep_files,
        "loglevel": logging.DEBUG if request.debug or settings.flag("DISPY_DEBUG") else None,
        "secret": connection.secret,
        "secret_file": connection.secret_file,
        "certfile": connection.certfile,
        "keyfile": connection.keyfile,
        "cafile": connection.cafile,
        "group": connection.group,
        "dispy_port": connection.dispy_port,
        "insecure": connection.insecure,
    }
    if request.scheduler:
        return SharedJobCluster(request.program, scheduler_host=request.scheduler, **given)
    return JobCluster(request.program, **given)


def _follow(cluster: AnyCluster, jobs: list[tuple[Sequence[str], DispyJob]], output: Output) -> None:
    """Show each job as it ends, in the order of submission."""
    from dispy.cli.progress import progress

    waiting = deque(jobs)
    with progress(cluster, len(jobs)) as display:
        while waiting:
            ready = []
            while waiting and waiting[0][1].finish.is_set():
                ready.append(waiting.popleft())
            if ready:
                with display.aside():
                    for words, job in ready:
                        output.show(words, job)
            else:
                waiting[0][1].finish.wait(GLANCE_INTERVAL)
            display.update()


def _close(cluster: AnyCluster, *, terminate: bool) -> None:
    cluster.close(terminate=terminate)
    cluster.shutdown()


@contextmanager
def _left_when_interrupted_again(cluster: AnyCluster) -> Iterator[None]:
    """End this process at the second signal, wherever the first one is being obeyed."""
    from dispy.portal import portal

    try:
        yield
    except _Interrupted as again:
        if not cluster.is_closed:
            # `timeout` sends its signal twice: that the jobs are to end must leave this process first
            cluster.end_jobs()
            portal().call(cluster.service.stop(hurried=True))
        # What runs at the end of the interpreter would wait for the jobs once more.
        os._exit(128 + again.signal)


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that means the same here."""

    def __init__(self, number: int) -> None:
        self.signal = number


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `_Interrupted` in the main thread."""

    def interrupt(number: int, _frame: object) -> NoReturn:
        raise _Interrupted(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
