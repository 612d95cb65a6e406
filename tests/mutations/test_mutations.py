"""The tool that asks whether the tests would notice: that it spoils, and that it sees who notices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mutations.mutants import mutants_of

SOURCE = """
class Desk:
    def __init__(self):
        self.sent = []
        self.last = None

    def handle(self, count):
        if count > 1 and count != 3:
            self.sent.append(count)
            self.last = count
        return self.sent
"""


def test_each_decision_is_spoilt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mutated_module.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    mutants = [mutant for mutant in mutants_of("mutated_module") if mutant.function == "Desk.handle"]
    assert [(mutant.line, mutant.kind) for mutant in mutants] == [
        (8, "condition negated"),
        (8, "without `count > 1`"),
        (8, "without `count != 3`"),
        (8, "off by one"),
        (9, "effect dropped"),
        (10, "assignment skipped"),
    ]
    module = sys.modules["mutated_module"]
    found = []
    for mutant in mutants:
        mutant.apply()
        desk = module.Desk()
        found.append(([desk.handle(count) for count in (0, 1, 2, 3)][-1], desk.last))
    assert found == [
        ([0, 1, 3], 3),
        ([0, 1, 2], 2),
        ([2, 3], 3),
        ([1, 2], 2),
        ([], 2),
        ([2], None),
    ]


EXTREMES = """
def bounded(count, most):
    logger.info("is it much?")
    if count > 9 and most:
        most = count
    if count > most and most:
        most = count
    return count if count < most else most
"""


def test_what_is_no_decision_is_not_spoilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mutated_extremes.py").write_text(EXTREMES)
    monkeypatch.syspath_prepend(tmp_path)
    places = [(mutant.line, mutant.kind) for mutant in mutants_of("mutated_extremes")]
    assert [line for line, kind in places if kind == "off by one"] == [4]
    assert 3 not in [line for line, _ in places], "a line for the log"


def test_the_tool_tells_what_is_noticed() -> None:
    folder = Path(__file__).parent
    command = [sys.executable, str(folder), "dispy.node.offer", "--tests", "node/test_offer.py", "--seeds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    last = [line for line in done.stdout.splitlines() if "mutants" in line]
    assert len(last) == 1, done.stdout
    assert " caught: " in last[0]
    assert " 0 by seeds" in last[0]
