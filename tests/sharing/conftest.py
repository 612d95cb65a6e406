"""What tests of shared schedulers have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sharedpool import Pool

from dispy.secrets import find_admin_credentials, find_credentials
from dispy.sharing.daemon import SharedScheduler
from dispy.sharing.settings import SharingSettings

Test = Callable[[Pool], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path, free_base_port: int) -> Callable[..., None]:
    """`run(test, **settings)`: the test with a scheduler, which ends after it."""
    credentials = find_credentials(secret="of clients")
    admin = find_admin_credentials(credentials, secret="of admins")
    usual = SharingSettings(
        tmp_path / "scheduler",
        find_credentials(secret="of nodes"),
        credentials,
        admin,
        interfaces=("lo",),
        base_port=free_base_port,
    )

    @contextlib.asynccontextmanager
    async def pool(**more: Any) -> AsyncIterator[Pool]:
        scheduler = SharedScheduler(replace(usual, **more))
        try:
            await scheduler.start()
            yield Pool(scheduler, credentials, admin)
        finally:
            await scheduler.close()

    def start(*tests: Test, **more: Any) -> None:
        async def main() -> None:
            for test in tests:  # each after a restart
                async with pool(**more) as there:
                    await test(there)

        asyncio.run(main())

    return start
