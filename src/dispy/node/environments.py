"""The Python interpreters of this machine: which of them can load a computation's functions."""

from __future__ import annotations

import asyncio
import sys

from dispy.errors import NodeError

_PROBE_TIMEOUT = 10.0
_PROBE = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.executable, sep='\\n')"
_NAMES = {"cpython": "CPython", "pypy": "PyPy", "graalpy": "GraalPy"}


def own_python() -> str:
    """Implementation and minor version of this process, as `cpython-3.11`."""
    return f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}"


class Environments:
    """The interpreters found so far. The daemon's own is known; others are looked for when a computation needs one."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {own_python(): sys.executable}

    @property
    def known(self) -> tuple[str, ...]:
        """Interpreters that are there, the daemon's own first."""
        return tuple(self._known)

    async def find(self, python: str) -> str:
        """Path of an interpreter that fits; empty `python` means that any does.

        Raises:
            NodeError: this node has none; the sentence names what it needs and what is here.
        """
        if not python:
            return sys.executable
        if python not in self._known:
            path = await self._look_for(python)
            if path is None:
                own = f"{_shown(own_python())[0]} {sys.version.split()[0]}"
                raise NodeError(f"needs {' '.join(_shown(python))}; this node has {own}")
            self._known[python] = path
        return self._known[python]

    async def _look_for(self, python: str) -> str | None:
        implementation, _, version = python.partition("-")
        command = "python" if implementation == "cpython" else implementation
        import shutil

        path = shutil.which(f"{command}{version}")
        if path is None:
            return None
        process = await asyncio.create_subprocess_exec(
            *(path, "-I", "-c", _PROBE),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return None
        lines = output.decode("utf-8", "replace").splitlines()
        return lines[2] if lines[:2] == [implementation, version] and len(lines) == 3 else None


def _shown(python: str) -> tuple[str, str]:
    implementation, _, version = python.partition("-")
    return _NAMES.get(implementation, implementation), version
