"""Says that jobs run again: one sentence for all jobs of one turn of the loop that do so for the same reason."""

from __future__ import annotations

import asyncio

from dispy.logs import logger


class Reruns:
    """What is to be said of the jobs of one cluster, in the loop's thread: a lost node may have had thousands."""

    def __init__(self) -> None:
        self._jobs: dict[str, list[object]] = {}
        """By why they run again: the ids that users know."""

    def add(self, job: object, cause: str) -> None:
        """A job waits again."""
        if not self._jobs:
            asyncio.get_running_loop().call_soon(self._say)
        self._jobs.setdefault(cause, []).append(job)

    def _say(self) -> None:
        jobs, self._jobs = self._jobs, {}
        for cause, ids in jobs.items():
            if len(ids) == 1:
                logger.info("job %s runs again: %s", ids[0], cause)
            else:
                logger.info("%d jobs run again (%s … %s): %s", len(ids), ids[0], ids[-1], cause)
