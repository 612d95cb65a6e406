"""Results on the disk of a real node: written, read again by the next daemon, claimed, and what is broken set aside."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from test_service import Scheduler, function, run, running, seen, settings

from dispy.model import BlobRef, HeldAttempt, JobDone
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.serving import lease_name
from dispy.node.settings import NodeSettings
from dispy.node.spool import Spool
from dispy.wire import messages as msg
from dispy.wire.blobs import BlobSources
from dispy.wire.blobsources import FileSource

__all__ = ["settings"]
LEASE = lease_name(b"token")
GATED = """
def compute(path, n):
    open(f'{path}-{n}', 'w').close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return 'x' * n
"""


@pytest.fixture(autouse=True)
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DISPY_CHECK", "1")
    return


def files(prefix: Path) -> list[Path]:
    return sorted(path for path in (prefix / "spool").rglob("*") if path.is_file())


def successor(of: Scheduler) -> Scheduler:
    """Another process that has the token."""
    made = Scheduler("successor")
    made.token = of.token
    return made


async def claim(node: Any, claimer: Scheduler, *, terminate: bool = False) -> msg.ResultsClaimed:
    if claimer.link is None or not claimer.link.is_open:
        await claimer.dial(node)
    claimer.send(msg.ClaimResults(claimer.token, terminate))
    return await claimer.hear(msg.ResultsClaimed)


def highest(of: Scheduler) -> int:
    return max(each.sequence for each, _ in of.heard if isinstance(each, msg.JobsDone))


def test_a_result_that_nobody_takes_outlives_client_and_daemon(settings: NodeSettings, tmp_path: Path) -> None:
    """Small and large ones; the second daemon gives them to a claim, once."""

    async def work() -> None:
        gate, large = tmp_path / "gate", 300_000
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function(GATED))
            anna.run(spec, {1: (str(gate), 5), 2: (str(gate), large)})
            await seen(lambda: len(list(tmp_path.glob("gate-*"))) == 2)
            anna.link.abort("killed")
            await seen(lambda: node.core.lease.peer is None)
            gate.touch()
            await seen(lambda: node.core.lease.results.is_spooled and len(node.core.lease.results.attempts) == 2)
            found = files(settings.prefix)
            assert {path.parent.name for path in found} == {lease_name(anna.token).hex()}
            assert {path.stat().st_mode & 0o777 for path in found} == {0o600}
            assert found[0].parent.stat().st_mode & 0o777 == (settings.prefix / "spool").stat().st_mode & 0o777 == 0o700
            assert anna.token.hex() not in str(found)
            copy = tmp_path / "killed"
            shutil.copytree(settings.prefix, copy)  # what a daemon leaves that is killed now
        async with running(replace(settings, prefix=copy)) as (node, _):
            claimer, late = successor(anna), successor(anna)
            answer = await claim(node, claimer)
            assert sorted(answer.ended, key=lambda held: held.job) == [HeldAttempt(1, 1), HeldAttempt(2, 1)]
            assert (await claimer.result(1))[1] == "xxxxx"
            assert (await claimer.result(2))[1] == "x" * large
            claimer.send(msg.AckResults(highest(claimer)))
            await seen(lambda: not files(copy))
            assert await claim(node, late) == msg.ResultsClaimed([], [])
            await claimer.close()
            await late.close()

    run(work)


def test_the_same_scheduler_gets_them_after_a_restart_and_numbers_go_on(settings: NodeSettings) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function("def compute(n): return n"))
            anna.run(spec, {1: (7,)})
            await anna.result(1)
            first = highest(anna)
            anna.link.abort("killed")
            await seen(lambda: node.core.lease.results.is_spooled)
        async with running(settings) as (node, again):
            again.token = anna.token
            granted = await again.lease(node)
            assert granted.held == [HeldAttempt(1, 1)]
            assert (await again.result(1))[1] == 7
            assert highest(again) == first
            again.send(msg.AckResults(first))
            spec = await again.ready(function("def compute(n): return n"))
            again.run(spec, {2: (8,)})
            await again.result(2)
            assert highest(again) > first
            await seen(lambda: not files(settings.prefix))

    run(work)


def test_a_claim_gets_the_job_that_runs_when_it_ends(settings: NodeSettings, tmp_path: Path) -> None:
    async def work() -> None:
        gate = tmp_path / "gate"
        async with running(settings, 2) as (node, anna, bert):
            await anna.lease(node)
            spec = await anna.ready(function(GATED))
            anna.run(spec, {1: (str(gate), 1)})
            await seen((tmp_path / "gate-1").exists)
            anna.link.abort("killed")
            claimer = successor(anna)
            assert await claim(node, claimer) == msg.ResultsClaimed([], [HeldAttempt(1, 1)])
            await bert.dial(node)
            bert.send(msg.AskLease(bert.token, bert.holder))
            await bert.hear(msg.LeaseRefused)
            gate.touch()
            assert (await claimer.result(1))[1] == "x"
            await bert.hear(msg.LeaseGranted)  # although it is not acknowledged
            claimer.send(msg.AckResults(highest(claimer)))
            await seen(lambda: not node.core.keeper.orphans)
            await claimer.close()

    run(work)


def test_a_claim_can_end_the_job_that_runs(settings: NodeSettings, tmp_path: Path) -> None:
    async def work() -> None:
        async with running(settings) as (node, anna):
            await anna.lease(node)
            spec = await anna.ready(function(GATED))
            anna.run(spec, {1: (str(tmp_path / "never"), 1)})
            await seen((tmp_path / "never-1").exists)
            anna.link.abort("killed")
            claimer = successor(anna)
            assert (await claim(node, claimer, terminate=True)).running == [HeldAttempt(1, 1)]
            await claimer.result(1)
            assert "KeyboardInterrupt" in claimer.text(1)
            await claimer.close()

    run(work)


def test_a_spool_that_cannot_be_written_stops_new_work_until_it_can(
    settings: NodeSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispy.node.keeping.RETRY_AFTER", 0.05)

    async def work() -> None:
        async with running(settings, 2) as (node, anna, bert):
            await bert.dial(node)
            await anna.lease(node)
            spec = await anna.ready(function("def compute(n): return n"))
            (settings.prefix / "spool").rmdir()
            (settings.prefix / "spool").write_text("in the way")
            anna.run(spec, {1: (7,)})
            await anna.result(1)
            anna.link.abort("killed")
            await bert.until(lambda: any(isinstance(m, msg.NodeDescribed) and not m.info.cpus for m, _ in bert.heard))
            assert "cannot keep results on its disk: Not a directory" in node.core.info.closed
            (settings.prefix / "spool").unlink()
            (settings.prefix / "spool").mkdir()
            await seen(lambda: node.core.info.cpus == settings.cpus)
            assert len(files(settings.prefix)) == 1
            claimer = successor(anna)
            assert (await claim(node, claimer)).ended == [HeldAttempt(1, 1)]
            await claimer.close()
        said = [record.message for record in caplog.records if "results are not kept" in record.message]
        assert len(said) == 1

    with caplog.at_level(logging.INFO, "dispy.node"):
        run(work)
    assert "not fetched yet of programs that are gone: 1 result in" in caplog.text


# The files themselves


class Told:
    """A spool whose events a test reads."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        path.mkdir(exist_ok=True)
        self.events: list[ev.Event] = []
        self.sources = BlobSources()
        self.spool = Spool(path / "spool", self.sources, self.events.append, most=most)
        self.found = self.spool.load(3600)

    def batch(self, sequence: int, body: bytes = b"result", blob: BlobRef | None = None) -> do.SpoolBatch:
        done = JobDone(sequence, 1, 0, 1.0, 2.0, blob.size if blob else len(body), 0, 0, 0, blob)
        return do.SpoolBatch(LEASE, msg.JobsDone(sequence, [done]), [] if blob else [body])


def with_loop(work: Callable[[], Any]) -> None:
    async def inside() -> None:
        await work()

    asyncio.run(inside())


def test_batches_are_read_as_they_were_written(tmp_path: Path) -> None:
    async def work() -> None:
        told = Told(tmp_path)
        fd = os.memfd_create("large")
        os.write(fd, b"y" * 100_000)
        blob = told.sources.offer_fd(fd, 100_000)
        for batch in (told.batch(9), told.batch(10, b""), told.batch(11, blob=blob)):
            told.spool.write(batch)
        await told.spool.close(keep=True)
        assert told.events == [ev.BatchesSpooled(LEASE, [9, 10, 11])]
        assert isinstance(told.sources.find(blob.name), FileSource)  # its memory has been let go
        again = Told(tmp_path)
        read = again.found[LEASE]
        assert [(each.message, bytes(each.bodies[0])) for each in read] == [
            (told.batch(9).message, b"result"),
            (told.batch(10, b"").message, b""),
            (told.batch(11, blob=blob).message, b""),
        ]
        again.spool.offer()
        source = again.sources.find(blob.name)
        assert isinstance(source, FileSource)
        assert source.path.read_bytes() == b"y" * 100_000
        again.spool.remove(do.UnspoolBatches(LEASE, [9, 10, 11]))
        await again.spool.close(keep=True)
        assert list((tmp_path / "spool").iterdir()) == []
        told.sources.close()

    with_loop(work)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "flip", "renamed"])
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        told = Told(tmp_path)
        told.spool.write(told.batch(1))
        told.spool.write(told.batch(2))
        await told.spool.close(keep=True)

    with_loop(work)
    victim = files(tmp_path)[0]
    data = victim.read_bytes()
    if damage == "renamed":
        victim.rename(victim.with_name("5.batch"))
    else:
        flipped = bytes([*data[:-1], data[-1] ^ 1])
        victim.write_bytes(
            {"cut": data[:-3], "garbage": secrets.token_bytes(99), "empty": b"", "flip": flipped}[damage]
        )
    again = Told(tmp_path)
    assert [each.message.sequence for each in again.found[LEASE]] == [2]
    assert "cannot be read" in caplog.text
    assert {path.suffix for path in files(tmp_path)} == {".batch", ".unreadable"}
    assert again.spool.unreadable == {LEASE: 1}
    caplog.clear()
    assert Told(tmp_path).spool.unreadable == {LEASE: 1}
    assert "cannot be read" not in caplog.text  # said once


def test_another_version_is_left_alone_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "spool" / LEASE.hex()
    folder.mkdir(parents=True)
    (folder / "1.batch").write_bytes(b"dispy spool 2\nwho knows")
    assert Told(tmp_path).found == {}
    assert "another version of dispy" in caplog.text
    assert len(files(tmp_path)) == 1


def test_what_was_unfinished_or_is_too_old_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        told = Told(tmp_path)
        told.spool.write(told.batch(1))
        await told.spool.close(keep=True)

    with_loop(work)
    folder = tmp_path / "spool" / LEASE.hex()
    (folder / "2.batch.part").write_bytes(b"half")
    Told(tmp_path)
    assert [path.name for path in files(tmp_path)] == [f"{1:020d}.batch"]
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 4000)
    assert Told(tmp_path).found == {}
    assert not folder.exists()


def test_a_spool_has_a_size_and_drops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        told = Told(tmp_path, most=3000)
        for number in (1, 2, 3):
            told.spool.write(told.batch(number, b"z" * 1200))
        await told.spool.close(keep=False)
        assert told.events == [ev.BatchesSpooled(LEASE, [1, 2]), ev.SpoolFailed(LEASE, [3])]
        assert "--spool_size" in told.spool.trouble
        told.spool.remove(do.UnspoolBatches(LEASE, [1]))
        told.spool.write(told.batch(3, b"z" * 1200))
        await told.spool.close(keep=False)
        assert told.events[-1] == ev.BatchesSpooled(LEASE, [3])
        assert not told.spool.trouble

    with_loop(work)
    assert len(files(tmp_path)) == 2
