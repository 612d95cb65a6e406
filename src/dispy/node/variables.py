"""The environment that fork servers and jobs find: without secrets, with the CPUs and GPUs that are theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from dispy.node.effects import JobExtra
from dispy.secrets import SECRET_VARIABLES

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""How many threads numerical libraries start: as many as the job has CPUs, else every job would start one for each."""
GPU_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"


def env_without_secrets() -> dict[str, str]:
    """The environment that what belongs to users may see."""
    return {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}


def environment_of_fork_server(python: str, *, is_virtual: bool, of_init: Mapping[str, str]) -> dict[str, str]:
    """Variables for everything below a fork server in the interpreter `python`.

    Args:
        python: its path.
        is_virtual: whether it belongs to a virtual environment.
        of_init: what the node owner's init file has set for jobs.
    """
    env = {**dict.fromkeys(THREAD_VARIABLES, "1"), **env_without_secrets()}
    if is_virtual:
        folder = os.path.dirname(python)
        env["VIRTUAL_ENV"] = os.path.dirname(folder)
        env["PATH"] = os.pathsep.join((folder, env.get("PATH", os.defpath)))
    env.update(of_init)
    return env


def told_of(extra: JobExtra) -> dict[str, object]:
    """What a job's worker is told of what the job gets, as `channel` has it."""
    env = {}
    if extra.cpus != 1:
        # what the node's owner has set for all jobs holds for these too
        env = {name: str(extra.cpus) for name in THREAD_VARIABLES if name not in os.environ}
    if extra.gpus:
        names = list(filter(None, os.environ.get(GPU_VARIABLE, "").split(",")))
        env[GPU_VARIABLE] = ",".join(names[number] if number < len(names) else str(number) for number in extra.gpus)
    told: dict[str, object] = {"env": env}
    if extra.memory:
        told["memory"] = extra.memory
    return told
