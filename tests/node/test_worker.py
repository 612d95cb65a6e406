"""Small parts of the worker, by value; what it does with real jobs is in `test_workers`."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dispy import buffers, pages
from dispy.model import Ending
from dispy.node import calls, deaths, freememory, jobside, worker
from dispy.node.channel import CANCEL, CELL_SIZE, PROVISIONAL, SENT_FILE
from dispy.node.linux import read_output


def test_endings_are_those_of_the_model() -> None:
    assert worker.FINISHED == Ending.FINISHED
    assert worker.RAISED == Ending.RAISED
    assert worker.NOT_STARTED == Ending.NOT_STARTED
    assert worker.INTERRUPTED == Ending.INTERRUPTED
    assert worker.UNSENDABLE == Ending.UNSENDABLE
    assert PROVISIONAL == Ending.PROVISIONAL
    assert SENT_FILE not in list(Ending)


def cell() -> memoryview:
    return memoryview(bytearray(CELL_SIZE)).cast("Q")


def test_a_call_gives_the_pickled_result() -> None:
    call = calls.function_call(cell(), lambda a, b=1: a + b)
    assert pickle.loads(call(1, pickle.dumps(((2,), {"b": 3})))) == 5


def test_large_results_come_in_parts_that_are_not_copied() -> None:
    for value in (b"x" * 100_000, (1, b"y" * 100_000)):
        call = calls.function_call(cell(), lambda value=value: value)
        parts = call(1, pickle.dumps(((), {})))
        assert isinstance(parts, list)
        large = value if isinstance(value, bytes) else value[1]
        assert any(part is large for part in parts)
        assert buffers.loads(b"".join(parts)) == value
    for value in (bytearray(100_000), np.arange(100_000), [np.arange(100_000)], {"a": (bytearray(100_000),)}):
        body = calls.dumps_result(value)
        made = buffers.loads(b"".join(body) if isinstance(body, list) else body)
        assert type(made) is type(value)
        assert pickle.dumps(made) == pickle.dumps(value)
    assert calls.dumps_result([1, "x" * 100_000]) == pickle.dumps([1, "x" * 100_000], 5)
    assert calls.dumps_result(np.arange(10)) == pickle.dumps(np.arange(10), 5)


def test_arguments_that_came_as_a_file_are_read_where_they_lie_and_stay_as_they_were() -> None:
    def spoil(array: Any, text: bytes) -> tuple[int, bytes]:
        array[:] = 1
        return int(array.sum()), text[:3]

    body = buffers.dumps(((np.zeros(200_000, np.uint8), b"abc" * 100_000), {}))
    fd = pages.memory_file("arguments", body)
    call = calls.function_call(cell(), spoil)

    answers = [pickle.loads(call(number, pages.mapped(fd))) for number in (1, 2)]  # type: ignore[arg-type]

    assert answers == [(200_000, b"abc")] * 2
    assert os.pread(fd, 1 << 20, 0) == b"".join(body)
    os.close(fd)


def test_a_large_result_without_room_in_memory_lies_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for has_room in (True, False):
        monkeypatch.setattr(freememory, "has_room", lambda _size, answer=has_room: answer)
        fd = freememory.file_of([b"abc", memoryview(b"def")], 6)
        assert os.pread(fd, 10, 0) == b"abcdef"
        assert ("memfd" in os.readlink(f"/proc/self/fd/{fd}")) is has_room
        with pytest.raises(OSError, match=r"Bad file descriptor|not permitted"):
            os.write(fd, b"x")
        os.close(fd)
    assert not list(tmp_path.iterdir())


def test_a_file_in_memory_cannot_be_changed_and_its_mapping_goes_with_the_last_that_uses_it() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:kept")

    fd = pages.memory_file("kept", [b"abc", memoryview(b"def")])
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    view = pickle.PickleBuffer(pages.mapped(fd)).raw()
    os.close(fd)
    assert bytes(view) == b"abcdef"
    view[0] = 0
    assert mappings() == 1
    del view
    assert mappings() == 0


def test_a_cancelled_job_is_not_called() -> None:
    words = cell()
    words[CANCEL] = 5
    call = calls.function_call(words, lambda: 1)
    with pytest.raises(calls.NotStarted):
        call(5, pickle.dumps(((), {})))
    assert call(6, pickle.dumps(((), {})))


def test_results_that_only_travel_by_value() -> None:
    call = calls.function_call(cell(), lambda: lambda x: x + 1)
    assert pickle.loads(call(1, pickle.dumps(((), {}))))(1) == 2


def test_setup_may_return_what_the_original_allowed() -> None:
    from dispy.namespace import Computation

    for status in (0, 1, 2, None):
        calls.run_setup(Computation(len, setup=lambda status=status: status), ())
    for refused in (3, -1, "no"):
        with pytest.raises(calls.SetupRefusedError, match="0 or nothing means success"):
            calls.run_setup(Computation(len, setup=lambda status=refused: status), ())


def test_a_cleanup_that_cannot_be_called_says_what_it_gets() -> None:
    from dispy.namespace import Computation

    def cleanup(number: int) -> None:
        raise TypeError(f"of the function itself: {number}")

    computation = Computation(len, cleanup=cleanup)
    trace, _ = calls.run_cleanup(computation, (), may_end_node=False)
    assert trace.endswith("(cleanup is called with the setup_args of its node, here none)\n")
    trace, _ = calls.run_cleanup(computation, (5,), may_end_node=False)
    assert trace.endswith("TypeError: of the function itself: 5\n")


def test_a_cleanup_may_ask_for_the_end_of_the_node_where_that_is_allowed() -> None:
    from dispy.namespace import Computation

    def cleanup(number: int) -> None:
        dispynode_shutdown()  # type: ignore[name-defined]  # noqa: F821
        assert number == 1, "wrong number"

    computation = Computation(len, cleanup=cleanup)
    assert calls.run_cleanup(computation, (1,), may_end_node=True) == ("", True)
    trace, asked = calls.run_cleanup(computation, (2,), may_end_node=True)
    assert asked
    assert "wrong number" in trace
    trace, asked = calls.run_cleanup(computation, (1,), may_end_node=False)
    assert not asked
    assert "started without --client_shutdown" in trace
    assert calls.run_cleanup(Computation(len), (1,), may_end_node=True) == ("", False)


def test_a_job_waits_for_its_file_as_long_as_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Silent:
        kept = -1

        def say(self, _ending: int, _body: bytes, fds: list[int]) -> bool:
            self.kept = os.dup(fds[1])
            return True

    silent = Silent()
    monkeypatch.setattr(jobside, "_speaker", silent)
    (tmp_path / "data").write_text("x")
    assert jobside.dispy_send_file(str(tmp_path / "data"), timeout=0.01) == -1
    os.close(silent.kept)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_only_regular_files_are_sent_and_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = {"pipe": tmp_path / "pipe", "directory": tmp_path, "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    monkeypatch.setattr(jobside, "_speaker", object())
    assert jobside.dispy_send_file(str(path), timeout=None) == -1
    assert f"{path} is not sent: it is not a regular file" in caplog.text


def test_a_trace_is_bounded() -> None:
    error: Any = ValueError("x" * 1_000_000)
    assert len(calls.user_trace(error)) < 70_000


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        (10, 10, b"0123456789"),
        (10, 4, b"01\n... 6 bytes left out ...\n89"),
        (0, 4, b""),
    ],
)
def test_output_is_cut_in_its_middle(size: int, limit: int, expected: bytes) -> None:
    fd = os.memfd_create("output")
    os.write(fd, b"before0123456789"[: 6 + size])
    assert read_output(fd, 6, 6 + size, limit) == expected
    os.close(fd)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit code 0"),
        (3 << 8, "exit code 3; it had used up to 35 MB of memory"),
        (11, "killed by SIGSEGV (segmentation fault); it had used up to 35 MB of memory"),
        (worker.SETUP_FAILED << 8, "setup failed in the worker"),
    ],
)
def test_causes_of_death(status: int, words: str) -> None:
    assert deaths.cause_of_death(status, 35_000_000) == words
