"""The programs in `benchmarks` work: with tiny amounts, and without the peers that have to be installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PROGRAMS = {
    "jobs": "jobs",
    "durable": "durable",
    "mapping": "map",
    "data": "data",
    "files": "files",
    "programs": "programs",
    "memory": "memory",
    "growth": "growth",
}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules that are no programs, imported as the programs do."""
    import importlib

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("tables", "peers", "running", "report")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_table_of_tiny_amounts(program: str, benchmarks: dict[str, ModuleType]) -> None:
    table = benchmarks["tables"].TABLES[PROGRAMS[program]]
    command = [sys.executable, str(BENCHMARKS / f"{program}.py"), "--quick", "--peers", "none", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    [rows] = [found["rows"] for found in json.loads(done.stdout)["tables"].values()]
    installed = set(benchmarks["peers"].PACKAGES)
    assert set(rows) == {system for system in table.systems if system not in installed}
    for system, row in rows.items():
        assert row["runs"], f"{system}: {row.get('reason')}"
        assert table.columns[0].key in row["runs"][0]


def test_tables_of_other_programs(benchmarks: dict[str, ModuleType]) -> None:
    for name, measure in benchmarks["running"].OTHERS.items():
        columns = benchmarks["tables"].TABLES[name].columns
        for system, row in measure(True).items():
            assert row["runs"], f"{name}: {system}: {row.get('reason')}"
            assert all(column.key in row["runs"][0] for column in columns)


def test_tiny_amounts_stay_out_of_the_page(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "quick.json").write_text(json.dumps({"machine": {}, "quick": True, "tables": {}}))
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "quick.json"), "--docs", str(tmp_path)])
    with pytest.raises(SystemExit, match="made with --quick"):
        benchmarks["report"].main()


def test_every_table_is_measured_by_somebody(benchmarks: dict[str, ModuleType]) -> None:
    tables, others = benchmarks["tables"].TABLES, benchmarks["running"].OTHERS
    assert set(PROGRAMS.values()) | set(others) == set(tables)
    assert all(bool(table.measure) != (name in others) for name, table in tables.items())


def test_a_peer_that_cannot_be_installed_is_named_with_the_reason(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(command: list[str], **_: Any) -> None:
        if "pip" in command:
            raise subprocess.CalledProcessError(1, command, stderr="Looking …\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", refused)
    assert benchmarks["peers"].python_of("Ray", tmp_path) == ("", "cannot be installed: ERROR: no such package")
    assert benchmarks["peers"].python_of("dispy", tmp_path) == (sys.executable, "")


def test_a_report_fills_its_places_and_keeps_the_rest(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = [{"jobs_per_second": rate, "p50": 0.0004, "p99": 0.001, "start": 0.2} for rate in (50_000.0, 60_000.0)]
    rows = {"dispy": {"runs": runs}, "Ray": {"runs": [], "reason": "cannot be installed: a|b"}}
    machine = {"cpus": "2", "kernel": "Linux 6", "python": "3.11", "date": "2026-01-01"}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"machine": machine, "tables": {"jobs": {"rows": rows}}}))
    page = tmp_path / "performance.md"
    page.write_text(
        "# Title\n<!-- begin machine -->\n<!-- end machine -->\nwords\n<!-- begin jobs -->\nold\n<!-- end jobs -->"
    )
    monkeypatch.setattr(sys, "argv", ["report", str(results), "--docs", str(tmp_path)])
    benchmarks["report"].main()
    benchmarks["report"].main()
    text = page.read_text()
    assert text.startswith("# Title\n<!-- begin machine -->\nMeasured on 2026-01-01")
    assert "words" in text
    assert "old" not in text
    assert "| dispy | 55,000 (50,000 … 60,000) | 0.40 | 1.00 | 0.200 |" in text
    assert "| Ray | cannot be installed: a/b |" in text
    plot = (tmp_path / "performance" / "jobs.svg").read_text()
    assert plot.startswith("<svg")
    assert "55,000" in plot
    assert "not measured" in plot


def test_results_that_cannot_be_read_are_refused_in_a_sentence(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "performance.md"
    page.write_text("as it was")
    results = tmp_path / "results.json"
    for content, sentence in [
        (None, "cannot be read: No such file"),
        ("{", "is not what benchmarks/all.py --json writes"),
        ("{}", "machine and tables are missing"),
    ]:
        if content is not None:
            results.write_text(content)
        monkeypatch.setattr(sys, "argv", ["report", str(results), "--docs", str(tmp_path)])
        with pytest.raises(SystemExit, match=sentence):
            benchmarks["report"].main()
    assert page.read_text() == "as it was"


@pytest.mark.parametrize("option", ["--only", "--peers"])
def test_names_of_nothing_are_refused(option: str, benchmarks: dict[str, ModuleType]) -> None:
    with pytest.raises(SystemExit, match=f"{option}: there is no 'nonsense'; choose from .*"):
        benchmarks["running"].main(["jobs", "map"], arguments=["--quick", option, "nonsense"])


def test_quick_results_are_marked(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = benchmarks["running"]
    monkeypatch.setattr(running, "run_table", lambda *_: {"rows": {}})
    for words, quick in ([], False), (["--quick"], True):
        running.main(["jobs"], arguments=["--json", *words])
        said = capsys.readouterr()
        assert json.loads(said.out)["quick"] is quick
        assert ("figures below mean nothing" in said.err) is quick
    running.main(["jobs"], arguments=["--quick"])
    assert "figures below mean nothing" in capsys.readouterr().out


def test_the_page_has_a_place_for_every_table(benchmarks: dict[str, ModuleType]) -> None:
    page = (BENCHMARKS.parent / "docs" / "performance.md").read_text()
    for name in ("machine", *benchmarks["tables"].TABLES):
        assert f"<!-- begin {name} -->" in page
        assert f"<!-- end {name} -->" in page
