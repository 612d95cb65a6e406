"""`dispy recover`: fetches the results of a program that was killed, and prints them as `dispy PROGRAM` does.

0: every job finished (a program: with exit code 0); 1: some did not; 130: interrupted, everything stays to be fetched.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dispy.cli.options import NORMALIZED, credential_options

if TYPE_CHECKING:
    from dispy.job import DispyJob


@click.command(short_help="Fetch the results of a program that was killed.", context_settings=NORMALIZED)
@click.argument("file", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Wait so long; what is missing stays.")
@click.option("--terminate", is_flag=True, help="End jobs that still run.")
@credential_options
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object per job.")
def recover(file: str | None, timeout: float | None, terminate: bool, as_json: bool, **credentials: Any) -> NoReturn:
    """Fetch the results of a program that was killed, from its recovery FILE (default: the newest that is not done).

    Jobs that still run are waited for. What was printed is not fetched again by a later call.
    """
    from dispy.recover import recover_jobs

    sys.path.insert(0, os.getcwd())  # results may be made of classes from there
    try:
        jobs = recover_jobs(file, timeout, terminate, **credentials)
    except KeyboardInterrupt:
        click.echo("interrupted: nothing is lost, call again for it", err=True)
        sys.exit(130)
    (_print_json if as_json else _print_text)(jobs)
    sys.exit(0 if all(_has_succeeded(job) for job in jobs) else 1)


def _has_succeeded(job: DispyJob) -> bool:
    from dispy.cli.output import has_succeeded

    return has_succeeded(job) if _is_program(job) else job.status is job.Finished


def _is_program(job: DispyJob) -> bool:
    return isinstance(job.stdout, bytes)


def _print_text(jobs: Iterable[DispyJob]) -> None:
    from dispy.cli.output import TextOutput

    shown = TextOutput(headings=True)
    for job in jobs:
        shown.show_recovered(job, is_program=_is_program(job))


def _print_json(jobs: Iterable[DispyJob]) -> None:
    for job in jobs:
        finished = job.status is job.Finished
        shown: dict[str, object] = {"id": _plain(job.id), "status": job.status.name}
        if _is_program(job):
            shown["exit_code"] = job.result if finished else None
        else:
            shown["result"] = _plain(job.result) if finished else None
        shown |= {
            "stdout": _text(job.stdout),
            "stderr": _text(job.stderr),
            "exception": job.exception,
            "node": job.ip_addr,
            "submit_time": job.submit_time,
            "start_time": job.start_time,
            "end_time": job.end_time,
        }
        click.echo(json.dumps(shown, ensure_ascii=False))


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _plain(value: object) -> object:
    """The value if JSON can say it, else its `repr`."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value
