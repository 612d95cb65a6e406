"""A line on the terminal that says how far the jobs are; nothing where standard error is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from dispy.words import counted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dispy.making import AnyCluster


class Display(Protocol):
    """What is shown while jobs run."""

    def update(self) -> None:
        """Show the state of now."""

    def aside(self) -> AbstractContextManager[None]:
        """Out of the way while something else is written to the terminal."""


class _Nothing:
    def update(self) -> None:
        return

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Line:
    def __init__(self, bar: Progress, task: TaskID, cluster: AnyCluster, total: int) -> None:
        self._bar, self._task, self._cluster, self._total = bar, task, cluster, total

    def update(self) -> None:
        status = self._cluster.status()
        nodes = counted(len(status.nodes), "node")
        cpus = sum(node.cpus for node in status.nodes)
        self._bar.update(
            self._task,
            completed=self._total - status.jobs_pending,
            where=f"{nodes}, {counted(cpus, 'CPU')}" if cpus else "no node yet",
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._bar.stop()  # it is transient: its line disappears
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def progress(cluster: AnyCluster, total: int) -> Iterator[Display]:
    """Show how many of `total` jobs have ended, for as long as the block runs."""
    if not sys.stderr.isatty():
        yield _Nothing()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[where]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    )
    with bar:
        yield _Line(bar, bar.add_task("jobs", total=total, where="no node yet"), cluster, total)
