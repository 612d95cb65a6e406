"""Asks the tests about each mutant, in a process of its own: those by value that call the spoilt function, then seeds
of the simulator.

It is a plugin of pytest that takes the place of the usual run: the tests are collected once, and each child process
spoils one function in its memory. Nothing is written into the source tree.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

from mutations.mutants import Mutant
from simulator.trouble import run_seed

CPU_LIMIT = 30
"""Seconds after which a spoilt program is taken for one that does not end; the tests take a second."""
TRACED_MOST = 0.05
"""Seconds of a test; of longer ones it is not noted what they call."""
SURVIVED, CAUGHT_BY_TEST, CAUGHT_BY_SEED = 0, 10, 11


@dataclass
class Verdicts:
    """What became of the mutants."""

    by_test: list[Mutant] = field(default_factory=list)
    by_seed: list[Mutant] = field(default_factory=list)
    by_time: list[Mutant] = field(default_factory=list)
    survivors: list[Mutant] = field(default_factory=list)
    never_run: list[Mutant] = field(default_factory=list)
    """Survivors in functions that no test by value calls."""

    @property
    def total(self) -> int:
        return len(self.by_test) + len(self.by_seed) + len(self.by_time) + len(self.survivors)

    @property
    def caught(self) -> float:
        """Per cent."""
        return 100.0 * (1.0 - len(self.survivors) / self.total) if self.total else 0.0


class MutationRun:
    """The plugin."""

    def __init__(self, mutants: Sequence[Mutant], seeds: range, processes: int, *, is_loud: bool) -> None:
        self.mutants, self.seeds, self.processes, self.is_loud = mutants, seeds, processes, is_loud
        self.verdicts = Verdicts()
        self._tests: defaultdict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
        """File and function → tests that call it."""
        self._slow: list[pytest.Item] = []
        """Tests that are asked about every mutant, after the others."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._trace(session.items)
        running: dict[int, Mutant] = {}
        for mutant in self.mutants:
            if len(running) >= self.processes:
                self._reap(running)
            running[self._fork(mutant)] = mutant
        while running:
            self._reap(running)
        return True

    def _trace(self, items: list[pytest.Item]) -> None:
        """Run every test once and note which functions of the cores it calls."""
        seen: set[CodeType] = set()

        def trace(frame: FrameType, _event: str, _argument: object) -> None:
            seen.add(frame.f_code)

        seconds: dict[pytest.Item, float] = {}
        for item in items:
            began = time.process_time()
            self._run_unspoilt(item)
            seconds[item] = time.process_time() - began
            if seconds[item] > TRACED_MOST:
                self._slow.append(item)
                continue
            seen.clear()
            sys.settrace(trace)
            try:
                self._run_unspoilt(item)
            finally:
                sys.settrace(None)
            for code in seen:
                self._tests[code.co_filename, code.co_qualname].append(item)
        self._slow.sort(key=seconds.__getitem__)
        for tests in self._tests.values():
            tests.sort(key=seconds.__getitem__)

    def _run_unspoilt(self, item: pytest.Item) -> None:
        failed = [report for report in runtestprotocol(item, log=False, nextitem=None) if report.failed]
        if failed:
            pytest.exit(f"{item.nodeid} fails without any mutation:\n{failed[0].longreprtext}", 1)

    def _tests_of(self, mutant: Mutant) -> list[pytest.Item]:
        """The tests to ask, the quickest first."""
        return [*self._tests[mutant.path, mutant.function], *self._slow]

    def _fork(self, mutant: Mutant) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        code = CAUGHT_BY_TEST
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT + 5))
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            mutant.apply()
            code = self._ask(mutant)
        finally:
            os._exit(code)

    def _ask(self, mutant: Mutant) -> int:
        for item in self._tests_of(mutant):
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
                return CAUGHT_BY_TEST
        for seed in self.seeds:
            try:
                run_seed(seed)
            except Exception:
                return CAUGHT_BY_SEED
        return SURVIVED

    def _reap(self, running: dict[int, Mutant]) -> None:
        child, status = os.waitpid(-1, 0)
        mutant = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            self.verdicts.by_time.append(mutant)
        elif code == CAUGHT_BY_TEST:
            self.verdicts.by_test.append(mutant)
        elif code == CAUGHT_BY_SEED:
            self.verdicts.by_seed.append(mutant)
        else:
            self.verdicts.survivors.append(mutant)
            if not self._tests[mutant.path, mutant.function]:
                self.verdicts.never_run.append(mutant)
            if self.is_loud:
                print(f"survives: {mutant}", flush=True)


def run_mutants(
    mutants: Sequence[Mutant], tests: Sequence[str], seeds: range, processes: int = 1, *, is_loud: bool = True
) -> Verdicts:
    """Ask these tests, and these seeds, about these mutants."""
    hypothesis.settings.register_profile("mutations", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("mutations")
    plugin = MutationRun(mutants, seeds, processes, is_loud=is_loud)
    # the fixtures of all tests look for processes and files that are left over: these tests make none
    options = [
        "-q",
        "--noconftest",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:rerunfailures",
        "-o",
        "timeout=0",
    ]
    pytest.main([*options, "-W", "ignore", *tests], plugins=[plugin])
    return plugin.verdicts


def in_words(verdicts: Verdicts) -> Iterator[str]:
    """The result, for people."""
    yield (
        f"{verdicts.total} mutants, {verdicts.caught:.1f} % caught: {len(verdicts.by_test)} by tests, "
        f"{len(verdicts.by_seed)} by seeds, {len(verdicts.by_time)} because they did not end"
    )
    for mutant in sorted(verdicts.survivors, key=lambda each: (each.module, each.line)):
        yield f"survives: {mutant}{' (no test comes here)' if mutant in verdicts.never_run else ''}"
