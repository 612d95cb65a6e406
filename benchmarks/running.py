"""Runs tables: each system in a process of its own, in its own environment; prints them for people and for programs."""

from __future__ import annotations

import argparse
import compileall
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import PACKAGES, default_folder, python_of
from tables import TABLES, WORKERS, Column, Table

HERE = Path(__file__).resolve().parent
TIMEOUT = 90.0
"""Seconds that one system has for one table."""
PEER_REPEATS = 2
"""Measurements of each peer, most of whose time is its start."""
NO_FIGURES = "--quick: tiny amounts show whether everything works; the figures below mean nothing."


def main(names: Sequence[str], description: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """The command line of all programs that measure tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="measurements of each system")
    parser.add_argument("--quick", action="store_true", help="tiny amounts, which only show that it works")
    parser.add_argument("--peers", default="all", help="all, none, or names: Ray,dask.distributed")
    parser.add_argument(
        "--scratch", type=Path, default=default_folder(), metavar="DIR", help="where peers are installed"
    )
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="figures for a program")
    parser.add_argument("--only", metavar="TABLE,…", help=f"of {', '.join(names)}" if len(names) > 1 else None)
    parser.add_argument("--jobs", type=int, help="jobs, where there are such")
    parser.add_argument("--trips", type=int, help="round trips, where there are such")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # what runs is ended as well
    compileall.compile_dir(
        HERE.parent / "src", quiet=1
    )  # as pip does with the peers, whatever PYTHONDONTWRITEBYTECODE says
    wanted = options.only.split(",") if options.only else names
    _check("--only", wanted, names)
    if options.peers not in ("all", "none"):
        _check("--peers", options.peers.split(","), [*PACKAGES, "all", "none"])
    results: dict[str, Any] = {"machine": machine(), "quick": options.quick, "tables": {}}
    if options.quick:
        print(NO_FIGURES, file=sys.stderr if options.json == "-" else sys.stdout, flush=True)
    for name in wanted:
        found = results["tables"][name] = run_table(TABLES[name], name, options)
        if options.json != "-":
            print(as_text(TABLES[name], found), flush=True)
        if options.json not in (None, "-"):  # after each table: what is measured is not lost
            Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.json == "-":
        print(json.dumps(results, indent=1))


def _check(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that nothing has."""
    if wrong := [name for name in given if name not in known]:
        raise SystemExit(f"{option}: there is no {', '.join(map(repr, wrong))}; choose from {', '.join(known)}")


def machine() -> dict[str, str]:
    """Where and when."""
    return {
        "cpus": str(os.cpu_count()),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def run_table(table: Table, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The runs of each system, or why there are none."""
    if not table.measure:
        return {"rows": OTHERS[name](options.quick)}
    rows = {}
    for system in table.systems:
        if system in PACKAGES and options.peers != "all" and system not in options.peers.split(","):
            continue
        python, reason = python_of(system, options.scratch)
        amounts = {**table.amounts, **table.of_system.get(system, {})}
        amounts |= {key: value for key in ("jobs", "trips") if key in amounts and (value := getattr(options, key))}
        if options.quick:
            amounts |= table.quick
        usual = min(table.repeats, PEER_REPEATS) if system in PACKAGES else table.repeats
        repeats = options.repeats or (1 if options.quick else usual)
        if reason:
            rows[system] = {"reason": reason, "runs": []}
        else:
            print(f"{name}: {system}", file=sys.stderr, flush=True)
            rows[system] = measured(python, system, table.measure, {"repeats": repeats, **amounts})
    return {"rows": rows}


def measured(python: str, system: str, measure: str, amounts: dict[str, Any]) -> dict[str, Any]:
    """What `driver.py` finds out in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="dispy-benchmark-", ignore_cleanup_errors=True) as folder:
        figures, said = Path(folder) / "figures", Path(folder) / "output"
        command = [python, str(HERE / "driver.py"), system, measure]
        command += [json.dumps({"workers": WORKERS, **amounts}), str(figures)]
        with said.open("w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
                env=environment(python),
            )
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                return {"reason": f"not within {TIMEOUT:g} s", "runs": []}
            finally:
                _end(process)
        if not figures.exists():
            lines = said.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            return {"reason": f"failed: {lines[-1][:200]}", "runs": []}
        return {"runs": json.loads(figures.read_text())}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a driver that has not ended, which ends its daemons first; nothing of its group stays."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(python: str) -> dict[str, str]:
    """Nothing of dispy's settings; this repository's dispy only for its own interpreter."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DISPY_", "PYTHONPATH"))}
    if python == sys.executable:
        clean["PYTHONPATH"] = str(HERE.parent / "src")
    return clean


def _program(*command: str) -> Any:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=HERE,
        env=environment(sys.executable),
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def _decisions(quick: bool) -> dict[str, Any]:
    found = _program("decisions.py", "--json", *(["--quick"] if quick else ["--jobs", "20000"]))
    if isinstance(found, str):
        return {"all policies": {"reason": found, "runs": []}}
    return {row["policy"]: {"runs": [row]} for row in found}


def _join(quick: bool) -> dict[str, Any]:
    amount = ["--quick"] if quick else ["--clients", "10", "--jobs", "20000"]
    found = _program("scale.py", "--json", *amount)
    return {"dispyscheduler": {"reason": found, "runs": []} if isinstance(found, str) else {"runs": [found]}}


OTHERS = {"decisions": _decisions, "join": _join}


def spread(runs: list[dict[str, float]], column: Column) -> list[float]:
    """Median, least and most of a column; empty where nobody measured it."""
    values = sorted(run[column.key] * column.scale for run in runs if column.key in run)
    return [statistics.median(values), values[0], values[-1]] if values else []


def cell(runs: list[dict[str, float]], column: Column) -> str:
    """For people."""
    found = spread(runs, column)
    if not found:
        return "–"
    middle, least, most = (f"{value:,.{column.digits}f}" for value in found)
    return middle if least == most else f"{middle} ({least} … {most})"


def as_text(table: Table, found: dict[str, Any]) -> str:
    """A table for a terminal: median (least … most)."""
    lines = [f"{table.title}", f"{'':22}" + "".join(f"{column.label:>34}" for column in table.columns)]
    for system, row in found["rows"].items():
        cells = "".join(f"{cell(row['runs'], column):>34}" for column in table.columns)
        lines.append(f"{system:22}" + (cells if row["runs"] else f"  {row['reason']}"))
    return "\n".join(lines) + "\n"
