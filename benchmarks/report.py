"""Puts the figures of `all.py` into docs/performance.md, with a plot for each table.

    python benchmarks/report.py results.json

Between the marks of a table in the page stands what is written here; the words around it are kept. Plots are SVG, made
here without any library, one bar for each system, of the first column, on a scale of powers of ten.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from html import escape
from pathlib import Path
from typing import Any

from running import cell, spread
from tables import TABLES, Column, Table

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = "performance.md"
FOLDER = "performance"
WIDTH, BAR, GAP, LABELS, VALUES = 720, 18, 8, 170, 130


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page")
    options = parser.parse_args()
    results = read(options.results)
    page = options.docs / PAGE
    text = page.read_text()
    folder = options.docs / FOLDER
    folder.mkdir(exist_ok=True)
    text = filled(text, "machine", about(results["machine"]))
    for name, table in TABLES.items():
        found = results["tables"].get(name)
        if found is None:
            continue
        (folder / f"{name}.svg").write_text(plot(table, found["rows"]))
        text = filled(text, name, section(table, name, found["rows"]))
    page.write_text(text)


def read(path: Path) -> dict[str, Any]:
    """What `all.py --json` wrote; figures that mean nothing are refused."""
    try:
        results: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise SystemExit(
            f"{path} cannot be read: {error.strerror}; benchmarks/all.py --json {path} makes it"
        ) from error
    except ValueError as error:
        raise SystemExit(f"{path} is not what benchmarks/all.py --json writes: {error}") from error
    if not isinstance(results, dict) or not {"machine", "tables"} <= set(results):
        raise SystemExit(f"{path} is not what benchmarks/all.py --json writes: machine and tables are missing")
    if results.get("quick"):
        raise SystemExit(f"{path} was made with --quick: its figures mean nothing, and stay out of {PAGE}")
    return results


def filled(text: str, name: str, content: str) -> str:
    """The page with other content between the marks of this name."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE} has no place for {name}: {begin} {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def about(machine: dict[str, str]) -> str:
    """Where these figures come from."""
    return (
        f"Measured on {machine['date']} on a virtual machine with {machine['cpus']} CPUs, {machine['kernel']}, "
        f"Python {machine['python']}; two workers for every system, all on loopback."
    )


def section(table: Table, name: str, rows: dict[str, Any]) -> str:
    """The table and its plot, as Markdown."""
    head = " | ".join(["", *(column.label for column in table.columns)]).strip()
    lines = [f"| {head} |", "|---" * (len(table.columns) + 1) + "|"]
    for system, row in rows.items():
        if row["runs"]:
            cells = [cell(row["runs"], column) for column in table.columns]
        else:
            cells = [row["reason"].replace("|", "/"), *[""] * (len(table.columns) - 1)]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return f"{table.what}\n\n" + "\n".join(lines) + f"\n\n![{table.title}]({FOLDER}/{name}.svg)"


def plot(table: Table, rows: dict[str, Any]) -> str:
    """Bars of the first column that every system has."""
    column = table.columns[0]
    bars = [(system, spread(row["runs"], column)) for system, row in rows.items()]
    known = [figures for _, figures in bars if figures and figures[1] > 0]
    low = math.floor(math.log10(min(figures[1] for figures in known))) if known else 0
    high = max(math.ceil(math.log10(max(figures[2] for figures in known))), low + 1) if known else 1
    room = WIDTH - LABELS - VALUES

    def at(value: float) -> float:
        return LABELS + room * (math.log10(value) - low) / (high - low)

    height = len(bars) * (BAR + GAP) + 40
    better = "more" if column.more_is_better else "less"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12">',
        "<style>text{fill:#555}.bar{fill:#9aa5b1}.own{fill:#2a7de1}.grid{stroke:#ccc}.spread{stroke:#333}"
        "@media (prefers-color-scheme:dark){text{fill:#ccc}.spread{stroke:#eee}.grid{stroke:#444}}</style>",
        f'<text x="0" y="14">{escape(table.title)}: {escape(column.label)} ({better} is better)</text>',
    ]
    for power in range(low, high + 1):
        x = at(10.0**power)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="22" y2="{height - 16}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 3}" text-anchor="middle">{_power(power)}</text>')
    for number, (system, figures) in enumerate(bars):
        parts += _bar(number, system, figures, column, at)
    return "\n".join([*parts, "</svg>", ""])


def _bar(number: int, system: str, figures: list[float], column: Column, at: Any) -> list[str]:
    top = 24 + number * (BAR + GAP)
    middle = top + BAR / 2
    lines = [f'<text x="{LABELS - 8}" y="{middle + 4}" text-anchor="end">{escape(system)}</text>']
    if not figures or figures[1] <= 0:
        return [*lines, f'<text x="{LABELS + 4}" y="{middle + 4}">not measured</text>']
    value, least, most = figures
    kind = "own" if system.startswith("dispy") and "4.15" not in system else "bar"
    lines.append(
        f'<rect class="{kind}" x="{LABELS}" y="{top}" width="{max(at(value) - LABELS, 1):.1f}" height="{BAR}"/>'
    )
    lines.append(f'<line class="spread" x1="{at(least):.1f}" x2="{at(most):.1f}" y1="{middle}" y2="{middle}"/>')
    lines.append(f'<text x="{at(most) + 6:.1f}" y="{middle + 4}">{value:,.{column.digits}f}</text>')
    return lines


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


if __name__ == "__main__":
    main()
