"""The options of submit: what they take, what they refuse, what is left to the function."""

from __future__ import annotations

from typing import Any

import pytest

from dispy.errors import SettingsError
from dispy.joboptions import take_options
from dispy.model import JobOptions


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"dispy_timeout": 2}, JobOptions(timeout=2.0)),
        ({"dispy_priority": -3}, JobOptions(priority=-3)),
        ({"dispy_cpus": "all"}, JobOptions(cpus=0)),
        ({"dispy_cpus": 4}, JobOptions(cpus=4)),
        ({"dispy_memory": 5 << 20}, JobOptions(memory=5 << 20)),
        ({"dispy_memory": "4GB"}, JobOptions(memory=4_000_000_000)),
        ({"dispy_memory": " 1.5 GiB"}, JobOptions(memory=3 << 29)),
        ({"dispy_memory": "512mib"}, JobOptions(memory=512 << 20)),
        ({"dispy_gpus": 2}, JobOptions(gpus=2)),
        ({"dispy_tags": "ssd"}, JobOptions(tags=("ssd",))),
        ({"dispy_tags": ["b", "a", "b"]}, JobOptions(tags=("a", "b"))),
        ({"dispy_retries": 1, "dispy_priority": 2}, JobOptions(retries=1, priority=2)),
    ],
)
def test_options(given: dict[str, Any], options: JobOptions) -> None:
    kwargs = {**given, "mine": 1}
    assert take_options(kwargs) == options
    assert kwargs == {"mine": 1}


def test_nothing_asked_is_none() -> None:
    assert take_options({"mine": 1}) is None
    assert take_options({"dispy_cpus": 1, "dispy_timeout": None, "dispy_retries": 0}) is None
    assert take_options({}, "n") == JobOptions(node="n")


@pytest.mark.parametrize(
    ("name", "value", "range"),
    [
        ("dispy_timeout", 0, "above 0"),
        ("dispy_timeout", float("nan"), "above 0"),
        ("dispy_priority", 1.5, "from -1000000 to 1000000"),
        ("dispy_priority", True, "whole number"),
        ("dispy_cpus", 0, "from 1 to 65536, or 'all'"),
        ("dispy_memory", "lots", "at least 1 MiB"),
        ("dispy_memory", 1000, "at least 1 MiB"),
        ("dispy_gpus", -1, "from 0 to 1024"),
        ("dispy_tags", [""], "not empty"),
        ("dispy_tags", ["\udcfe"], r"'\\udcfe'"),
        ("dispy_retries", "2", "from 0 to 1000"),
        ("dispy_nonsense", 2, "is not a job option.*dispy_gpus, dispy_job_depends, dispy_memory"),
    ],
)
def test_refused_with_name_and_range(name: str, value: Any, range: str) -> None:
    with pytest.raises(SettingsError, match=range) as error:
        take_options({name: value})
    assert str(error.value).startswith(f"submit: {name} ")
    with pytest.raises(SettingsError, match=f"^map: {name} "):
        take_options({name: value}, asked="map")
