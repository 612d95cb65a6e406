"""Real workers, their answers and their deaths, as the daemon sees them."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from dispy.model import Ending
from dispy.node import patience, workers
from dispy.node.channel import CLAIMED, RUNNING
from dispy.node.replies import ForkServerSpec, SetupFailed
from dispy.node.workers import ForkServer

sys.path.insert(0, str(Path(__file__).parent))
from serving_computation import gone, kill, result, serving, text, when


def test_results_keywords_and_errors(tmp_path: Path) -> None:
    def divide(a: float, b: float = 2.0) -> float:
        return a / b

    async def main() -> None:
        async with serving(tmp_path, divide) as at:
            before = time.time()
            reply = await at.run(5)
            assert result(reply) == 2.5
            assert before <= reply.started_at <= reply.ended_at <= time.time()
            assert result(await at.run(a=9, b=3)) == 3
            failed = await at.run(1, 0)
            assert failed.ending == Ending.RAISED
            trace = text(failed, "error")
            assert "ZeroDivisionError" in trace
            assert "return a / b" in trace, "the source travels for tracebacks"
            assert "worker.py" not in trace
            assert "calls.py" not in trace

    asyncio.run(main())


def test_batches_answer_each_job_once_and_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda x: x) as at:
            sequences = [at.submit(number) for number in range(3000)]
            await at.seen.until(lambda: len(at.seen.replies) == 3000)
            assert [result(at.seen.replies[sequence]) for sequence in sequences] == list(range(3000))
            assert list(at.seen.replies) == sequences

    asyncio.run(main())


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("exit", "exit code 3"),
        ("segfault", "killed by SIGSEGV (segmentation fault)"),
        ("kill", "killed by SIGKILL (killed)"),
        ("abort", "killed by SIGABRT (aborted)"),
        pytest.param(
            "endless C recursion",
            "killed by SIGSEGV (segmentation fault)",
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="later versions raise RecursionError there"),
        ),
    ],
)
def test_a_death_names_its_cause_and_loses_no_other_job(tmp_path: Path, how: str, cause: str) -> None:
    def job(how: str) -> str:
        import ctypes
        import os
        import signal
        import sys

        print("last words", file=sys.stderr)
        if how == "exit":
            os._exit(3)
        elif how == "segfault":
            ctypes.string_at(0)
        elif how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "abort":
            os.abort()
        elif how == "endless C recursion":
            sys.setrecursionlimit(1 << 30)

            class Deep:
                def __repr__(self) -> str:
                    return repr(self)

            repr(Deep())
        return how

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            first, second, third = at.submit("fine"), at.submit(how), at.submit("behind")
            death = await at.death()
            assert result(at.seen.replies[first]) == "fine"
            assert third not in at.seen.replies
            assert death.running == second
            assert death.cause.startswith(cause)
            assert death.stderr.startswith(b"last words\n")
            assert death.started > 0
            assert at.seen.order[-1] == "died"
            at.server.fork(2)
            at.worker = 2
            at.seen.deaths.clear()
            assert result(await at.run("again")) == "again"

    asyncio.run(main())


@pytest.mark.parametrize(("status", "shown"), [(0, "SystemExit: 0"), (4, "SystemExit: 4"), (None, "SystemExit")])
def test_sys_exit_ends_the_job_but_not_the_worker(tmp_path: Path, status: int | None, shown: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda code: sys.exit(code)) as at:
            reply = await at.run(status)
            assert reply.ending == Ending.RAISED
            assert text(reply, "error").rstrip().endswith(shown)
            assert (await at.run(1)).ending == Ending.RAISED
            assert not at.seen.deaths

    asyncio.run(main())


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    def job() -> dict[str, object]:
        import threading

        return {"fine": 1, "parts": [threading.Lock()]}

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            reply = await at.run()
            assert reply.ending == Ending.UNSENDABLE
            assert text(reply, "error").startswith("the result['parts'][0] (a _thread.lock) cannot be pickled")

    asyncio.run(main())


def test_errors_that_cannot_be_shown_or_pickled_are_still_errors(tmp_path: Path) -> None:
    def job(kind: str) -> None:
        class BadError(Exception):
            def __str__(self) -> str:
                raise ValueError("no words")

        def deep() -> None:
            deep()

        if kind == "str":
            raise BadError
        if kind == "base":
            raise BaseException("base")
        deep()

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for kind, shown in (("str", "BadError"), ("base", "BaseException: base"), ("deep", "RecursionError")):
                reply = await at.run(kind)
                assert reply.ending == Ending.RAISED
                assert shown in text(reply, "error")

    asyncio.run(main())


def test_large_arguments_and_results_go_through_memory(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda data: data[::-1]) as at:
            fd = os.memfd_create("arguments")
            from dispy.shipping import dumps_arguments

            data = bytes(range(256)) * 20_000
            os.write(fd, dumps_arguments(at.shipment, (data,), {}))
            at.server.feed(1, [(1, fd), (2, dumps_arguments(at.shipment, (b"ab",), {})), (3, fd)])
            os.close(fd)
            at.sequence = 3
            assert result(await at.reply(1)) == data[::-1]
            assert result(await at.reply(2)) == b"ba"
            assert result(await at.reply(3)) == data[::-1]

    asyncio.run(main())


def test_many_jobs_are_queued_without_blocking_the_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda data: len(data)) as at:
            started = time.monotonic()
            for _ in range(200):
                at.submit(b"x" * 30_000)
            assert time.monotonic() - started < 1
            await at.seen.until(lambda: len(at.seen.replies) == 200)
            assert {result(reply) for reply in at.seen.replies.values()} == {30_000}

    asyncio.run(main())


# Output


def test_output_of_python_c_and_children_is_captured_in_order(tmp_path: Path) -> None:
    def job() -> None:
        import ctypes
        import os
        import subprocess
        import sys

        print("python")
        ctypes.CDLL(None).puts(b"c")
        os.write(1, b"raw\n")
        subprocess.run(["echo", "child"], check=True)
        print("end", end="")
        print("error", file=sys.stderr)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for _ in range(2):
                reply = await at.run()
                assert text(reply, "stdout") == "python\nc\nraw\nchild\nend"
                assert text(reply, "stderr") == "error\n"

    asyncio.run(main())


def test_a_job_that_breaks_the_streams_harms_no_other(tmp_path: Path) -> None:
    def job(how: str) -> None:
        import io
        import os
        import sys

        if how == "replace":
            sys.stdout = io.StringIO()
        elif how == "close":
            sys.stdout.close()
        elif how == "descriptor":
            os.close(1)
        elif how == "range":
            os.closerange(3, 400)
        elif how == "null":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:
            print("surrogate \udc80")

    async def main() -> None:
        for how in ("replace", "descriptor", "range", "null", "close"):
            async with serving(tmp_path, job) as at:
                assert (await at.run(how)).ending == Ending.FINISHED
                if how == "close":
                    assert (await at.death()).expected
                    at.server.fork(2)
                    at.worker = 2
                    at.seen.deaths.clear()
                assert text(await at.run(""), "stdout") == "surrogate \\udc80\n"

    asyncio.run(main())


def test_the_middle_of_much_output_is_cut_out(tmp_path: Path) -> None:
    def job() -> None:
        line = "x" * 999
        print("first")
        for _ in range(100_000):
            print(line)
        print("last")

    async def main() -> None:
        async with serving(tmp_path, job, limit=16 << 20) as at:
            reply = await at.run()
            assert reply.ending == Ending.FINISHED
            out = text(reply, "stdout")
            assert out.startswith("first\n")
            assert out.endswith("last\n")
            assert "bytes left out" in out
            assert len(out) < 17 << 20

    asyncio.run(main())


def test_endless_output_ends_the_job(tmp_path: Path) -> None:
    def job() -> None:
        while True:
            print("y" * 1000)

    async def main() -> None:
        async with serving(tmp_path, job, limit=100_000) as at:
            sequence = at.submit()
            death = await at.death()
            assert death.limited
            assert death.running == sequence
            assert "to stdout (100 kB are kept" in death.cause
            assert len(death.stdout) < 110_000

    asyncio.run(main())


def test_the_tail_of_a_running_job(tmp_path: Path) -> None:
    def job(ready: str) -> None:
        import os
        import time

        print("so far")
        os.close(os.open(ready, os.O_CREAT))
        while os.path.exists(ready):
            time.sleep(0.005)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            ready = tmp_path / "ready"
            sequence = at.submit(str(ready))
            await when(ready.exists)
            assert at.server.tail(1, sequence) == (b"so far\n", b"")
            ready.unlink()
            assert text(await at.reply(sequence), "stdout") == "so far\n"
            assert at.server.tail(1, sequence) == (b"", b"")

    asyncio.run(main())


# What a job leaves behind


LEAVERS = {
    "child": "subprocess.Popen(['sleep', '60'])",
    "session": "subprocess.Popen(['sleep', '60'], start_new_session=True)",
    "daemon": "subprocess.run(['sh', '-c', 'setsid sleep 60 & setsid sleep 60 &'])",
    "stubborn": "subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT HUP; while :; do sleep 60; done'])",
}


def leave(code: str, then: str) -> list[int]:
    import os
    import subprocess

    from dispy.node import linux

    eval(code, {"subprocess": subprocess})
    left = []
    while not left:
        left = linux.children()
    if then == "exit":
        with open("left", "w") as file:
            file.write(" ".join(map(str, left)))
        os._exit(0)
    return left


@pytest.mark.parametrize("how", LEAVERS)
def test_nothing_that_a_job_started_outlives_it(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, leave) as at:
            left = result(await at.run(LEAVERS[how], ""))
            await gone(*left)
            assert (await at.death()).expected, "such a worker is not used again"

    asyncio.run(main())


@pytest.mark.parametrize("how", LEAVERS)
def test_nothing_that_a_dead_job_started_outlives_it(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, leave) as at:
            at.submit(LEAVERS[how], "exit")
            death = await at.death()
            assert (death.running, death.cause) == (1, "exit code 0")
            assert not death.expected
            await gone(*map(int, (tmp_path / "left").read_text().split()))

    asyncio.run(main())


def test_a_finished_child_that_nobody_waited_for_costs_nothing(tmp_path: Path) -> None:
    def job() -> int:
        import os
        import subprocess

        process = subprocess.Popen(["true"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process.returncode = 0
        return os.getpid()

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) == result(await at.run())

    asyncio.run(main())


def test_a_thread_left_running_costs_the_worker(tmp_path: Path) -> None:
    def job() -> int:
        import threading
        import time

        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return 7

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) == 7
            assert (await at.death()).expected

    asyncio.run(main())


def test_a_forked_child_that_comes_back_answers_nothing(tmp_path: Path) -> None:
    def job() -> bool:
        import os

        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return bool(pid)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            assert result(await at.run()) is True
            assert result(await at.run()) is True
            assert len(at.seen.replies) == 2

    asyncio.run(main())


@pytest.mark.parametrize("victim", ["fork server", "guard"])
def test_a_killed_fork_server_leaves_nothing(tmp_path: Path, victim: str) -> None:
    def job() -> None:
        import os
        import subprocess
        import time

        from dispy.node import linux

        subprocess.Popen(["sleep", "60"], start_new_session=True)
        subprocess.run(["sh", "-c", "setsid sleep 60 & setsid sleep 60 &"], check=True)
        with open("left.new", "w") as file:
            file.write(" ".join(map(str, [os.getpid(), *linux.children()])))
        os.rename("left.new", "left")
        time.sleep(60)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            at.submit()
            behind = at.submit()
            await when((tmp_path / "left").exists)
            left = list(map(int, (tmp_path / "left").read_text().split()))
            assert len(left) >= 3
            process = at.server._process
            assert process is not None
            kill(at.server.pid if victim == "fork server" else process.pid)
            await at.seen.until(lambda: bool(at.seen.server_death))
            assert at.seen.server_death == "the computation's fork server ended: killed by SIGKILL (killed)"
            death = at.seen.deaths[0]
            assert death.running == 1
            assert behind not in at.seen.replies
            await at.server.wait_ended()
            await gone(*left)

    asyncio.run(main())


DAEMON = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {folders!r}
from serving_computation import serving

def job():
    import os, subprocess, time, ctypes
    from dispy.node import linux
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    subprocess.run(["sh", "-c", "setsid sleep 60 & setsid sleep 60 &"], check=True)
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    with open("left.new", "w") as file:
        file.write(" ".join(map(str, [os.getpid(), os.getppid(), *linux.children()])))
    os.rename("left.new", "left")
    time.sleep(60)

async def main():
    async with serving(Path.cwd(), job) as at:
        at.submit()
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_killed_daemon_leaves_nothing(tmp_path: Path) -> None:
    source = DAEMON.format(folders=[str(Path(__file__).parent), *sys.path])
    daemon = subprocess.Popen([sys.executable, "-c", source], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "left").exists():
            assert daemon.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        daemon.kill()
        daemon.wait()
    left = list(map(int, (tmp_path / "left").read_text().split()))
    assert len(left) >= 4
    asyncio.run(gone(*left))


# Cancel and recall


def test_a_cancelled_job_sees_keyboard_interrupt(tmp_path: Path) -> None:
    def job(catch: bool, ready: str) -> str:
        import os
        import time

        try:
            os.close(os.open(ready, os.O_CREAT))
            time.sleep(60)
        except KeyboardInterrupt:
            if catch:
                return "caught"
            raise
        return "not interrupted"

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for catch in (True, False):
                ready = tmp_path / f"ready{catch}"
                sequence = at.submit(catch, str(ready))
                await when(ready.exists)
                at.server.cancel(1, sequence)
                reply = await at.reply(sequence)
                if catch:
                    assert result(reply) == "caught"
                else:
                    assert reply.ending == Ending.INTERRUPTED
            assert not at.seen.deaths

    asyncio.run(main())


def test_cancel_reaches_children_and_destructors(tmp_path: Path) -> None:
    def job(kind: str) -> None:
        import subprocess
        import time

        class Slow:
            def __del__(self) -> None:
                end = time.monotonic() + 0.001
                while time.monotonic() < end:
                    pass

        if kind == "child":
            subprocess.run(["sleep", "60"], check=True)
        while True:
            Slow()
            time.sleep(0.001)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for kind in ("child", "destructor"):
                sequence = at.submit(kind)
                await when(lambda sequence=sequence: at.server._workers[1].cell[RUNNING] == sequence)
                await asyncio.sleep(0.05)
                started = time.monotonic()
                at.server.cancel(1, sequence)
                assert (await at.reply(sequence)).ending == Ending.INTERRUPTED
                assert time.monotonic() - started < 2

    asyncio.run(main())


def test_a_queued_job_that_is_cancelled_is_not_started(tmp_path: Path) -> None:
    def job(mark: str) -> None:
        import time

        open(mark, "w").close()
        time.sleep(0.2)

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            sequences = [at.submit(f"mark{number}") for number in range(4)]
            at.server.cancel(1, sequences[1])
            at.server.cancel(1, sequences[3])
            for number, sequence in enumerate(sequences):
                reply = await at.reply(sequence)
                assert reply.ending == (Ending.NOT_STARTED if number % 2 else Ending.FINISHED)
                assert (tmp_path / f"mark{number}").exists() == (not number % 2)
                assert (reply.started_at == 0) == bool(number % 2)

    asyncio.run(main())


def test_stronger_signals_end_a_stubborn_job_only(tmp_path: Path) -> None:
    def job() -> None:
        import time

        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                continue

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            sequence = at.submit()
            await when(lambda sequence=sequence: at.server._workers[1].cell[RUNNING] == sequence)
            at.server.signal(1, sequence + 1, signal.SIGKILL)
            at.server.cancel(1, sequence)
            await asyncio.sleep(0.1)
            assert not at.seen.deaths
            at.server.signal(1, sequence, signal.SIGTERM)
            death = await at.death()
            assert death.cause.startswith("killed by SIGTERM (terminated)")
            assert death.running == sequence

    asyncio.run(main())


def test_a_worker_that_lost_its_senses_can_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs nothing and answers nothing, so no signal finds the job that is to end."""
    monkeypatch.setattr(workers, "_END_TIMEOUT", 0.2)

    def job() -> None:
        import builtins

        builtins.len = lambda _: 42

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            sequence = at.submit()
            worker = at.server._workers[1]
            # It may also end by itself; then its cell is closed.
            await when(lambda: bool(at.seen.deaths) or (worker.cell[CLAIMED] == sequence and not worker.cell[RUNNING]))
            assert not at.seen.replies
            at.server.signal(1, sequence, signal.SIGKILL)
            await at.seen.until(lambda: bool(at.seen.deaths))

    asyncio.run(main())


def test_thousands_of_cancels_never_hit_another_job(tmp_path: Path) -> None:
    def job(number: int, span: float) -> int:
        import time

        end = time.perf_counter() + span
        try:
            while time.perf_counter() < end:
                sum(range(20))
        finally:
            number += 0
        return number

    async def main() -> None:
        chance = random.Random(7)
        async with serving(tmp_path, job) as at:
            wanted: set[int] = set()
            endings = {Ending.FINISHED: 0, Ending.INTERRUPTED: 0, Ending.NOT_STARTED: 0}
            for _ in range(250):
                batch = [at.submit(at.sequence + 1, chance.uniform(0, 1e-3)) for _ in range(8)]
                for _ in range(5):
                    until = time.perf_counter() + chance.uniform(0, 2e-3)
                    await when(lambda until=until: time.perf_counter() >= until, pause=0)  # type: ignore[misc]
                    sequence = at.server._workers[1].cell[RUNNING] or chance.choice(batch)
                    wanted.add(sequence)
                    at.server.cancel(1, sequence)
                await at.seen.until(lambda batch=batch: batch[-1] in at.seen.replies or bool(at.seen.deaths))  # type: ignore[misc]
                assert not at.seen.deaths
            assert len(at.seen.replies) == at.sequence
            for sequence, reply in at.seen.replies.items():
                endings[Ending(reply.ending)] += 1
                if sequence not in wanted:
                    assert reply.ending == Ending.FINISHED
                if reply.ending == Ending.FINISHED:
                    assert result(reply) == sequence
            assert endings[Ending.INTERRUPTED] > 50, endings
            assert endings[Ending.FINISHED] > 700, endings

    asyncio.run(main())


def test_recalled_jobs_do_not_run_and_all_others_do(tmp_path: Path) -> None:
    async def main() -> None:
        chance = random.Random(11)
        async with serving(tmp_path, lambda x: x) as at:
            dropped: set[int] = set()
            for _ in range(150):
                fed = [at.submit(at.sequence + 1) for _ in range(chance.randrange(1, 30))]
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                count = len(at.seen.recalled)
                at.server.recall(1, fed[-1] + 1)
                if chance.random() < 0.5:
                    at.submit(at.sequence + 1)
                await at.seen.until(lambda count=count: len(at.seen.recalled) > count)  # type: ignore[misc]
                first, before = at.seen.recalled[-1]
                assert before == fed[-1] + 1
                now = set(range(first, before))
                assert not now & dropped, "recalled twice"
                dropped |= now
            last = at.submit(0)
            await at.reply(last)
            assert set(at.seen.replies) == set(range(1, last + 1)) - dropped
            assert dropped
            assert at.server._workers[1].open == 0

    asyncio.run(main())


def test_retire_ends_a_worker_after_its_jobs(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, lambda x: x) as at:
            for number in range(100):
                at.submit(number)
            at.server.retire(1)
            assert (await at.death()).expected
            assert len(at.seen.replies) == 100

    asyncio.run(main())


# Between jobs


def test_a_job_finds_the_process_as_every_other_did(tmp_path: Path) -> None:
    def job(change: bool) -> Any:
        import os
        import signal
        import sys

        if change:
            os.chdir("/")
            os.umask(0o777)
            os.environ["LEFT"] = "1"
            del os.environ["PATH"]
            sys.argv.append("x")
            sys.stdin = None
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
        umask = os.umask(0)
        os.umask(umask)
        return (
            os.getcwd(),
            umask,
            sorted(os.environ.items()),
            list(sys.argv),
            sys.stdin is None,
            str(signal.getsignal(signal.SIGCHLD)),
            sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        )

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            before = result(await at.run(False))
            assert before[0] == str(tmp_path)
            await at.run(True)
            await asyncio.sleep(0.05)
            assert result(await at.run(False)) == before
            assert not at.seen.deaths

    asyncio.run(main())


# Programs


def write_program(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source))
    path.chmod(0o755)
    return path


def test_a_program_gets_arguments_and_gives_its_exit_code(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    program = write_program(
        tmp_path / "prog.sh",
        """\
        #!/bin/sh
        echo "$1-$2"
        echo "$dispy_node_name" >&2
        pwd
        read nothing || echo no input
        exit $2
        """,
    )

    async def main() -> None:
        async with serving(folder, str(program)) as at:
            for code in (0, 7):
                reply = await at.run("a b", code)
                assert result(reply) == code
                assert text(reply, "stdout") == f"a b-{code}\n{folder}\nno input\n"
                assert text(reply, "stderr") == "here\n"

    asyncio.run(main())


def test_a_python_program_and_a_system_program(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    (tmp_path / "prog.py").write_text("import sys, os; print(sys.argv[1:]); os.kill(os.getpid(), 9)")

    async def main() -> None:
        async with serving(folder, str(tmp_path / "prog.py")) as at:
            reply = await at.run(1, "x")
            assert result(reply) == -9
            assert text(reply, "stdout") == "" or "['1', 'x']" in text(reply, "stdout")
        async with serving(folder, "false") as at:
            assert at.shipment.files == []
            assert result(await at.run()) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("just text\n", "a script that begins with #!"),
        ("#!/no/such/interpreter\n", "the interpreter that its first line names"),
    ],
)
def test_a_program_that_cannot_be_executed_says_why(tmp_path: Path, source: str, words: str) -> None:
    program = tmp_path / "prog"
    program.write_text(source)
    program.chmod(0o755)

    async def main() -> None:
        async with serving(tmp_path, str(program)) as at:
            reply = await at.run()
            assert reply.ending == Ending.RAISED
            assert words in text(reply, "error")

    asyncio.run(main())


def test_a_running_program_is_interrupted(tmp_path: Path) -> None:
    program = write_program(tmp_path / "prog", "#!/bin/sh\n: > ready\nexec sleep 60\n")
    stubborn = write_program(tmp_path / "stubborn", "#!/bin/sh\ntrap '' INT\n: > ready\nwhile :; do sleep 1; done\n")

    async def main() -> None:
        for path, number in ((program, signal.SIGINT), (stubborn, signal.SIGTERM)):
            (tmp_path / "ready").unlink(missing_ok=True)
            async with serving(tmp_path, str(path)) as at:
                sequence = at.submit()
                await when((tmp_path / "ready").exists)
                at.server.cancel(1, sequence)
                if number == signal.SIGTERM:
                    await asyncio.sleep(0.1)
                    assert not at.seen.replies
                    at.server.signal(1, sequence, number)
                reply = await at.reply(sequence)
                assert reply.ending == Ending.INTERRUPTED
                assert number.name in text(reply, "error")

    asyncio.run(main())


# Other interpreters


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_another_interpreter(tmp_path: Path, version: str) -> None:
    program = tmp_path / "prog.py"
    program.write_text("import sys; print(sys.version_info[:2])")
    python = other_python(version)

    async def main() -> None:
        async with serving(tmp_path, str(program), python=python) as at:
            major, minor = version.split(".")
            assert text(await at.run(), "stdout") == f"({major}, {minor})\n"

    asyncio.run(main())


def other_python(version: str) -> str:
    """A working interpreter of this version, else the test is skipped."""
    found = shutil.which(f"python{version}")
    if found is None:
        pytest.skip(f"no python{version} on PATH")
    shown = subprocess.run(
        [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        pytest.skip(f"{found} does not run: {shown.stderr.strip()}")
    return shown.stdout.strip()


def test_an_interpreter_that_does_not_exist(tmp_path: Path) -> None:
    spec = ForkServerSpec("/no/such/python", tmp_path, {}, "program", "x")

    async def main() -> None:
        with pytest.raises(SetupFailed, match="/no/such/python cannot be started"):
            await ForkServer(spec, None).start()  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_fork_server_that_may_have_too_few_descriptors_says_so_for_now(tmp_path: Path) -> None:
    """The limit may be lowered while a node runs, and raised again: nothing is wrong with the computation."""

    async def scenario() -> None:
        server = ForkServer(ForkServerSpec(sys.executable, tmp_path, dict(os.environ), "program", "x"), None)  # type: ignore[arg-type]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
        try:
            with pytest.raises(SetupFailed, match=r"descriptors from 500 on cannot be had here") as caught:
                await server.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert not caught.value.final

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [0, 1 << 40, 1 << 62, (1 << 64) - 1])
@pytest.mark.parametrize("ends", ["dies", "returns", "prints"])
def test_a_job_that_spoils_what_its_worker_tells_the_daemon_ends_like_any_other(
    tmp_path: Path, number: int, ends: str
) -> None:
    def job(number: int, ends: str) -> str:
        import os
        import struct

        for entry in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{entry}"
            if os.path.lexists(path) and "dispy-cell" in os.readlink(path):
                os.pwrite(int(entry), struct.pack("Q", number) * 16, 0)
        print("last words")
        if ends == "dies":
            os._exit(3)
        if ends == "prints":
            os.write(1, b"x" * 300_000)
        return ends

    async def main() -> None:
        async with serving(tmp_path, job, limit=1000) as at:
            first = at.submit(number, ends)
            await at.seen.until(lambda: bool(at.seen.replies or at.seen.deaths))
            if number and ends == "dies":
                assert at.seen.deaths[0].running == first
                assert at.seen.deaths[0].cause.startswith("exit code 3")
            at.server.cancel(1, first)
            at.server.fork(2)
            at.worker, at.sequence = 2, 0
            at.seen.replies.clear()
            at.seen.deaths.clear()
            await at.seen.until(lambda: 2 in at.seen.forked)
            at.submit(0, "returns")
            await at.seen.until(lambda: 1 in at.seen.replies)

    asyncio.run(main())


def test_a_job_that_speaks_for_its_worker_costs_the_worker(tmp_path: Path) -> None:
    def job(kind: str) -> str:
        import os
        import struct

        if kind != "fine":
            sequence, ending = {"unknown job": (99, 0), "file without a file": (1, 8)}[kind]
            reply = struct.pack("<QBBHIIIIdd", sequence, ending, 0, 0, 0, 0, 0, 0, float("nan"), float("inf"))
            for entry in os.listdir("/proc/self/fd"):
                path = f"/proc/self/fd/{entry}"
                if int(entry) >= 500 and os.path.lexists(path) and "socket" in os.readlink(path):
                    os.write(int(entry), reply)
            import time

            time.sleep(60)
        return kind

    async def main() -> None:
        async with serving(tmp_path, job) as at:
            for number, kind in enumerate(("unknown job", "file without a file"), 1):
                at.server.fork(number + 1)
                sequence = at.submit(kind)
                death = await at.death()
                assert death.cause.startswith("what it sent to the node makes no sense"), death
                assert death.running == sequence
                at.worker, at.sequence = number + 1, 0
                at.seen.deaths.clear()
            assert result(await at.run("fine")) == "fine"

    asyncio.run(main())


def test_a_report_that_cannot_be_followed_ends_the_fork_server_with_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop would call the failing reader again for ever."""

    async def main() -> None:
        async with serving(tmp_path, len) as at:

            def fails(worker: int, pid: int) -> None:
                raise RuntimeError("no idea")

            monkeypatch.setattr(at.seen, "worker_forked", fails)
            at.server.fork(2)
            await at.seen.until(lambda: bool(at.seen.server_death))
            cause = "the node cannot follow it any more (RuntimeError: no idea)"
            assert at.seen.server_death == f"the computation's fork server ended: {cause}"
            assert len(at.seen.deaths) == 2

    asyncio.run(main())


@pytest.mark.parametrize("guard_too", [False, True])
def test_a_stopped_fork_server_is_not_waited_for_with_cleanup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard_too: bool
) -> None:
    monkeypatch.setattr(patience, "ANSWER_TIMEOUT", 0.5)

    async def main() -> None:
        async with serving(tmp_path, len) as at:
            if guard_too:
                os.kill(at.server._process.pid, signal.SIGSTOP)
            os.kill(at.server.pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                trace = await at.server.cleanup()
            assert "it was stopped (SIGSTOP) and answered nothing for 0.5 s" in trace
            await at.server.wait_ended()

    asyncio.run(main())


def test_a_cleanup_function_may_take_longer_than_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ANSWER_TIMEOUT", 0.3)

    def cleanup() -> None:
        import time

        time.sleep(1.5)
        with open("done", "w") as file:
            file.write("done")

    async def main() -> None:
        async with serving(tmp_path, len, cleanup=cleanup) as at:
            assert not await at.server.cleanup()
        assert (tmp_path / "done").exists()

    asyncio.run(main())
