"""What is to be told of a worker that has died: which job it ran, what that had written, whether a limit was broken."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from dispy.node.channel import CLEANUP_FAILED, SETUP_FAILED, SHUTDOWN_ASKED, STDERR_AT, STDOUT_AT
from dispy.node.deaths import cause_of_death
from dispy.node.linux import read_output
from dispy.node.memorybounds import kernel_verdict
from dispy.node.replies import WorkerDeath
from dispy.node.workerrecord import WorkerRecord


class Findings(Struct):
    """How a worker died, and what its fork server must know of that."""

    death: WorkerDeath
    failed_in: str = ""
    """`setup` or `cleanup`, if the worker has run that itself and it failed."""
    shutdown_asked: bool = False
    """Its cleanup function has asked the node to end."""


def examine(worker: WorkerRecord, cause: str, status: int | None, output_limit: int, *, exhausted: bool) -> Findings:
    """Look at a worker whose last answers were read.

    Args:
        worker: what the daemon has of it.
        cause: how it ended, for people.
        status: what `waitpid` said; None: nothing was said of it.
        output_limit: bytes kept of each of its outputs.
        exhausted: whether it was never started, as the machine had nothing left for it.
    """
    running = worker.running() if worker.open else 0
    death = WorkerDeath(running, cause, exhausted=exhausted)
    death.stdout = _written(worker, STDOUT_AT, output_limit)
    death.stderr = _written(worker, STDERR_AT, output_limit)
    if running:
        death.started = worker.begun_at if worker.seen == running else worker.fed_at
        limited, verdict = worker.limited
        if limited != running:
            verdict = kernel_verdict(worker, running, death.started)
        if verdict:
            death.cause = verdict
            death.limited = True
        return Findings(death)
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    death.expected = code in (0, SHUTDOWN_ASKED)
    failed_in = {SETUP_FAILED: "setup", CLEANUP_FAILED: "cleanup"}.get(code, "") if code is not None else ""
    return Findings(death, failed_in, code == SHUTDOWN_ASKED)


def _written(worker: WorkerRecord, word: int, output_limit: int) -> bytes:
    """What the job wrote; a death is told whatever has become of that."""
    try:
        return read_output(*worker.extent(word), output_limit)
    except OSError as error:
        return f"(what it wrote cannot be read: {error.strerror})\n".encode()


def told_cause(report: Mapping[str, Any]) -> str:
    """How a worker ended, for people, from what its fork server reports."""
    if report["status"] is None:
        return str(report["error"])
    return cause_of_death(report["status"], report["memory"])
