"""An init file that never returns."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from dispy.errors import NodeError
from dispy.node import initfile
from dispy.node.initfile import InitFile


def test_an_init_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initfile, "INIT_TIMEOUT", 0.5)
    path = tmp_path / "init.py"
    path.write_text("import time\ndef init():\n    time.sleep(100)\n")

    async def main() -> None:
        with pytest.raises(NodeError, match="did not end within"):
            await InitFile(path, tmp_path / "made", "mark").start(os.environ)

    asyncio.run(main())
