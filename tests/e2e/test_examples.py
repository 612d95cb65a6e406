"""Every program in `examples` runs, unchanged, on a node that it finds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXPECTED = {
    "bounded_submit": ["1000 jobs, at most 200 at a time: [143, 143, 143, 143, 143, 143, 142]"],
    "delegate": ["7", "D-I-S-P-Y"],
    "divisors": ["10000000000099 [", "Sec/Job"],
    "job_scheduler": ["one offers 2 CPUs", "19 was computed on one", "0 was computed on one"],
    "long_run": ["the best of 2 searches: 0.0"],
    "mapping": ["longest below 10000: 261 steps, from 6171", "the first with more than 200 steps is 2463"],
    "map_reduce": [" for"],
    "node_setup": ["a occurs 6 times", "u occurs 1 times"],
    "node_update": ["one runs Linux"],
    "objects": ["circle 2 of radius 1.0 has area 3.14", "circle 8 of radius 4.0 has area 50.27"],
    "provisional_results": ["so far: 3.1", "result: 3.1"],
    "replace_data": ["saw edition 1", "saw edition 2", "job 2 on one saw edition 3"],
    "sample": ["nap 9: ", " s on one, from ", "speedup"],
    "scattered": ["78498 primes, ", "9592 primes up to 100000, the largest is 99991"],
    "shared": ["anna has 5000 jobs", "bob's 10 jobs have ended", "most of anna's jobs still wait: True"],
    "shared_variables": ["jobs on one have added up 1275", "in all: 1275"],
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str, dispynode: Callable[..., Any], free_base_port: int) -> None:
    dispynode("--cpus", "2", name="one")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "DISPY_PORT": str(free_base_port), "DISPY_LOCAL": "never"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout, done.stdout + done.stderr
