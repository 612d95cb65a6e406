"""Asks the tests about each mutant, in a process of its own: those by value that call the spoilt function, then seeds
of the simulator.

It is a plugin of pytest that takes the place of the usual run: the tests are collected once, and each child process
spoils one function in its memory. Nothing is written into the source tree.
"""

from __future__ import annotations

import mmap
import os
import resource
import struct
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

CPU_LIMIT = 10
"""Seconds of one test or seed after which a spoilt program is taken for one that does not end."""
TRACED_MOST = 0.05
"""Seconds of a test; of longer ones it is not noted what they call."""
NUMBER = struct.Struct("=I")
SURVIVED, CAUGHT_BY_TEST, CAUGHT_BY_SEED, NOT_SPOILT = 0, 10, 11, 12


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
        self._noticed = mmap.mmap(-1, NUMBER.size * max(1, len(mutants)))
        """Which test, counted from 1, has noticed which mutant: written by the children."""
        self._items: list[pytest.Item] = []
        self._sharp: defaultdict[str, dict[pytest.Item, None]] = defaultdict(dict)
        """File → tests that have noticed a mutant of it, the last one last: they are asked first about the next."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._items = session.items
        self._trace(session.items)
        running: dict[int, int] = {}
        for number in range(len(self.mutants)):
            if len(running) >= self.processes:
                self._reap(running)
            running[self._fork(number)] = number
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
        """The tests to ask: those that have noticed a neighbour, the last of them first, then the quickest first."""
        tests = [*self._tests[mutant.path, mutant.function], *self._slow]
        sharp = [test for test in reversed(self._sharp[mutant.path]) if test in tests]
        return list(dict.fromkeys([*sharp, *tests]))

    def _fork(self, number: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        code = NOT_SPOILT
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            self.mutants[number].apply()
            code = CAUGHT_BY_TEST
            code = self._ask(number)
        finally:
            os._exit(code)

    def _ask(self, number: int) -> int:
        for item in self._tests_of(self.mutants[number]):
            _allow_cpu()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
                NUMBER.pack_into(self._noticed, NUMBER.size * number, 1 + self._items.index(item))
                return CAUGHT_BY_TEST
        for seed in self.seeds:
            _allow_cpu()
            try:
                run_seed(seed)
            except Exception:
                return CAUGHT_BY_SEED
        return SURVIVED

    def _reap(self, running: dict[int, int]) -> None:
        child, status = os.waitpid(-1, 0)
        number = running.pop(child)
        mutant = self.mutants[number]
        code = os.waitstatus_to_exitcode(status)
        if code == NOT_SPOILT:
            pytest.exit(f"this cannot be spoilt: {mutant}", 1)
        if code < 0:
            self.verdicts.by_time.append(mutant)
        elif code == CAUGHT_BY_TEST:
            self.verdicts.by_test.append(mutant)
            (test,) = NUMBER.unpack_from(self._noticed, NUMBER.size * number)
            if test:
                sharp = self._sharp[mutant.path]
                sharp.pop(self._items[test - 1], None)
                sharp[self._items[test - 1]] = None
        elif code == CAUGHT_BY_SEED:
            self.verdicts.by_seed.append(mutant)
        else:
            self.verdicts.survivors.append(mutant)
            if not self._tests[mutant.path, mutant.function]:
                self.verdicts.never_run.append(mutant)
            if self.is_loud:
                print(f"survives: {mutant}", flush=True)


def _allow_cpu() -> None:
    limit = int(time.process_time()) + CPU_LIMIT
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


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
