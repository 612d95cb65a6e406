"""The portal's threads: calls, callbacks, and an executor that outlives the main thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from dispy.errors import ClosedError
from dispy.portal import portal


def test_call_runs_in_the_loop_and_returns() -> None:
    async def where() -> str:
        return threading.current_thread().name

    assert portal().call(where()) == "dispy-loop"
    assert portal() is portal()


def test_call_from_the_loop_is_refused() -> None:
    async def inner() -> None:
        raise AssertionError("never runs")

    async def outer() -> None:
        with pytest.raises(ClosedError, match="own event loop"):
            portal().call(inner())

    portal().call(outer())


def test_callbacks_run_in_order_and_survive_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[int] = []
    done = threading.Event()

    def fail() -> None:
        raise ValueError("of the user")

    portal().callback(lambda: order.append(1))
    portal().callback(fail)
    portal().callback(lambda: order.append(2))
    portal().callback(done.set)
    assert done.wait(10)
    assert order == [1, 2]
    assert "of the user" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_the_loop_survives_what_asyncio_lets_out_of_it(
    kind: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    async def answer() -> int:
        return 4

    def leave() -> None:
        raise kind("of a callback")

    portal().post(leave)
    assert portal().call(answer(), 10) == 4
    assert "of a callback" in capsys.readouterr().err


def test_files_can_be_read_while_the_interpreter_ends() -> None:
    program = (
        "import atexit, asyncio\n"
        "from dispy.portal import portal\n"
        "portal()\n"
        "async def read(): return await asyncio.to_thread(len, 'four')\n"
        "atexit.register(lambda: print(portal().call(read())))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("4", "")


def test_exceptions_in_the_executor_reach_the_waiter() -> None:
    async def divide() -> float:
        return await asyncio.to_thread(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        portal().call(divide())
