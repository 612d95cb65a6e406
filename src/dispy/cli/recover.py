"""`dispy recover`: fetches the results of a program that was killed, and prints them as `dispy PROGRAM` does.

0: every job finished (a program: with exit code 0) and is shown; 1: some did not, are not here yet, were lost, or have
a result that cannot be opened here; 130: interrupted, everything stays to be fetched.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dispy.cli.options import NORMALIZED, credential_options

if TYPE_CHECKING:
    from dispy.job import DispyJob
    from dispy.recover import Recovered


@click.command(short_help="Fetch the results of a program that was killed.", context_settings=NORMALIZED)
@click.argument("file", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait so long; what is missing stays.")
@click.option("--terminate", is_flag=True, help="End jobs that still run.")
@credential_options
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object per job.")
def recover(file: str | None, timeout: float | None, terminate: bool, as_json: bool, **credentials: Any) -> NoReturn:
    """Fetch the results of a program that was killed, from its recovery FILE (default: the newest that is not done).

    Jobs that still run are waited for. What was printed is not fetched again by a later call, unless this one was
    killed before it had printed all.
    """
    from dispy.recover import recovering

    sys.path.insert(0, os.getcwd())  # results may be made of classes from there
    try:
        with recovering(file, timeout, terminate, _command, **credentials) as found:
            (_print_json if as_json else _print_text)(found)
            sys.stdout.flush()
    except KeyboardInterrupt:
        again = "dispy recover" if file is None else _command(Path(file))
        click.echo(f"interrupted: nothing is lost, `{again}` goes on", err=True)
        sys.exit(130)
    sys.exit(0 if found.is_complete and all(_has_succeeded(job) for job in found.jobs) else 1)


def _command(path: Path) -> str:
    return f"dispy recover {shlex.quote(str(path))}"


def _has_succeeded(job: DispyJob) -> bool:
    from dispy.cli.output import has_succeeded

    return has_succeeded(job) if _is_program(job) else job.status is job.Finished


def _is_program(job: DispyJob) -> bool:
    return isinstance(job.stdout, bytes)


def _print_text(found: Recovered) -> None:
    from dispy.cli.output import TextOutput

    shown = TextOutput(headings=True)
    for job in found.jobs:
        shown.show_recovered(job, is_program=_is_program(job), sealed_in=found.path if job in found.sealed else None)


def _print_json(found: Recovered) -> None:
    for job in found.jobs:
        finished = job.status is job.Finished
        status = "Finished" if job in found.sealed else job.status.name
        fields: dict[str, object] = {"id": _plain(job.id), "status": status}
        if _is_program(job):
            fields["exit_code"] = job.result if finished else None
        else:
            fields["result"] = _plain(job.result) if finished else None
        fields |= {
            "stdout": _text(job.stdout),
            "stderr": _text(job.stderr),
            "exception": job.exception,
            "node": job.ip_addr,
            "submit_time": job.submit_time or None,
            "start_time": job.start_time,
            "end_time": job.end_time,
        }
        click.echo(json.dumps(fields, ensure_ascii=False))


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _plain(value: object) -> object:
    """The value if JSON can say it, else its `repr`."""
    from dispy.cli.output import shown

    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return shown(value)
    return value
