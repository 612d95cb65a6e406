"""How `dispy PROGRAM` shows jobs that have ended: what they printed, or one JSON object each."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from dispy.job import DispyJob


class Output(Protocol):
    """Shows jobs and counts those that failed."""

    failed: int

    def show(self, words: Sequence[str], job: DispyJob) -> None:
        """Show a job that has ended; `words` are its arguments."""


def make_output(*, as_json: bool, jobs: int) -> Output:
    """The form of output for so many jobs."""
    return JsonOutput() if as_json else TextOutput(headings=jobs > 1)


def has_succeeded(job: DispyJob) -> bool:
    """Whether its program ended with exit code 0."""
    return job.status is DispyJob.Finished and job.result == 0


def shown(value: object) -> str:
    """The `repr` of a result, also of one whose class cannot make it."""
    try:
        return repr(value)
    except Exception as error:  # its class is the user's, and other results are to be shown as well
        return f"<{type(value).__name__}: its repr raises {type(error).__name__}>"


class TextOutput:
    """What jobs printed: standard output to standard output, the rest to standard error, each job in one piece."""

    def __init__(self, *, headings: bool) -> None:
        self.failed = 0
        self._headings = headings
        self._number = 0

    def show(self, words: Sequence[str], job: DispyJob) -> None:
        """Show a job that has ended."""
        self._number += 1
        stdout, stderr = sys.stdout.buffer, sys.stderr.buffer
        if self._headings:
            _write(stdout, f"== job {self._number}: {shlex.join(words)}  ({_ending(job)})\n".encode())
        _write(stdout, job.stdout or b"", end_line=self._headings)
        if not has_succeeded(job):
            self.failed += 1
            what = f"job {self._number} ({shlex.join(words)})" if self._headings else "the job"
            _write(stderr, job.stderr or b"", end_line=True)
            _write(stderr, f"dispy: {what}: {_ending(job)}\n{_cause(job)}".encode())
            return
        if job.stderr and self._headings and not (sys.stdout.isatty() and sys.stderr.isatty()):
            _write(stderr, f"== job {self._number}: {shlex.join(words)}\n".encode())
        _write(stderr, job.stderr or b"", end_line=self._headings)

    def show_recovered(self, job: DispyJob, *, is_program: bool, sealed_in: Path | None = None) -> None:
        """Show a job of which only the number is known, and of a function's also the result.

        `sealed_in`: its result cannot be opened here, and stays in this file.
        """
        stdout, stderr = sys.stdout.buffer, sys.stderr.buffer
        ending = _ending(job, is_program=is_program, has_finished=sealed_in is not None)
        _write(stdout, f"== job {job.id}  ({ending})\n".encode())
        for stream, output in ((stdout, job.stdout), (stderr, job.stderr)):
            data = output.encode() if isinstance(output, str) else output or b""
            _write(stream, data, end_line=True)
        if sealed_in is not None:
            sentence = (
                f"dispy: job {job.id}: finished; its result can only be opened by a program that has its class: call "
                f"dispy.recover_jobs({str(sealed_in)!r}) there\n"
            )
            _write(stderr, sentence.encode())
        elif job.status is not DispyJob.Finished:
            _write(stderr, f"dispy: job {job.id}: {_ending(job)}\n{_cause(job)}".encode())
        elif not is_program:
            _write(stdout, f"{shown(job.result)}\n".encode(errors="backslashreplace"))


def _ending(job: DispyJob, *, is_program: bool = True, has_finished: bool = False) -> str:
    where = f" on {job.ip_addr}" if job.ip_addr else ""
    ran = job.start_time is not None and job.end_time is not None
    took = f" after {job.end_time - job.start_time:.2f} s" if ran else ""  # type: ignore[operator]
    ending = f"exit code {job.result}" if job.status is DispyJob.Finished and is_program else job.status.name
    if has_finished:
        ending = DispyJob.Finished.name
    return f"{ending}{where}{took}"


def _cause(job: DispyJob) -> str:
    return f"{job.exception.rstrip()}\n" if job.exception else ""


def _write(stream: BinaryIO, data: bytes, *, end_line: bool = False) -> None:
    if data:
        stream.write(data)
        if end_line and not data.endswith(b"\n"):
            stream.write(b"\n")
        stream.flush()


class JsonOutput:
    """One JSON object per line and job."""

    def __init__(self) -> None:
        self.failed = 0

    def show(self, words: Sequence[str], job: DispyJob) -> None:
        """Show a job that has ended; output that is not UTF-8 has U+FFFD where it is not."""
        self.failed += not has_succeeded(job)
        shown = {
            "args": list(words),
            "status": job.status.name,
            "exit_code": job.result if job.status is DispyJob.Finished else None,
            "stdout": (job.stdout or b"").decode(errors="replace"),
            "stderr": (job.stderr or b"").decode(errors="replace"),
            "exception": job.exception,
            "node": job.ip_addr,
            "submit_time": job.submit_time,
            "start_time": job.start_time,
            "end_time": job.end_time,
        }
        _write(sys.stdout.buffer, json.dumps(shown, ensure_ascii=False).encode() + b"\n")
