"""Files that jobs bring into a directory: shared, waited for, removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dispy.errors import NodeError, TransferError
from dispy.model import BlobRef, FileSpec
from dispy.node.loans import Loans
from dispy.node.workdir import Workdir
from dispy.wire.blobstore import BlobStore


class Place:
    """A directory into which files come when the test lets them."""

    def __init__(self, path: Path) -> None:
        self.workdir = Workdir(path, fresh=True)
        self.loans = Loans(self.workdir, BlobStore(path.with_name("blobs")), self.bring)
        self.gates: dict[str, asyncio.Future[None]] = {}

    async def bring(self, file: FileSpec) -> None:
        gate = self.gates.get(file.path)
        if gate is not None:
            await gate
        target = self.workdir.path / file.path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.blob.name[:1])
        self.workdir.placed[file.path] = file.blob.name

    def gate(self, name: str) -> asyncio.Future[None]:
        self.gates[name] = asyncio.get_running_loop().create_future()
        return self.gates[name]

    def files(self) -> dict[str, bytes]:
        found = self.workdir.path.rglob("*")
        return {str(path.relative_to(self.workdir.path)): path.read_bytes() for path in found if path.is_file()}


def file(path: str, content: bytes = b"1") -> FileSpec:
    return FileSpec(path, BlobRef(content * 32, 1))


def run(tmp_path: Path, scene: Callable[[Place], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await scene(Place(tmp_path))

    asyncio.run(main())


async def rest() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_file_stands_there_as_long_as_a_job_needs_it(tmp_path: Path) -> None:
    async def scene(at: Place) -> None:
        one: list[str] = []
        two: list[str] = []
        await at.loans.lend((file("a"), file("d/b")), one)
        await at.loans.lend((file("d/b"),), two)
        at.loans.give_back(one)
        assert at.files() == {"d/b": b"1"}
        at.loans.give_back(two)
        assert at.files() == {}
        assert at.workdir.placed == {}

    run(tmp_path, scene)


def test_different_files_of_one_name_wait_for_each_other(tmp_path: Path) -> None:
    async def scene(at: Place) -> None:
        one: list[str] = []
        two: list[str] = []
        await at.loans.lend((file("a"), file("b")), one)
        waiting = asyncio.create_task(at.loans.lend((file("b", b"2"), file("a", b"2")), two))
        await rest()
        assert not waiting.done()
        assert at.files() == {"a": b"1", "b": b"1"}
        at.loans.give_back(one)
        await waiting
        assert at.files() == {"a": b"2", "b": b"2"}

    run(tmp_path, scene)


def test_what_the_computation_has_is_not_lent(tmp_path: Path) -> None:
    async def scene(at: Place) -> None:
        await at.bring(file("a"))
        held: list[str] = []
        await at.loans.lend((file("a"),), held)
        assert held == []
        with pytest.raises(NodeError, match="another file a"):
            await at.loans.lend((file("a", b"2"),), held)
        at.loans.give_back(held)
        assert at.files() == {"a": b"1"}

    run(tmp_path, scene)


@pytest.mark.parametrize("failure", ["cancel", "error"])
def test_a_job_that_fails_to_get_its_file_spoils_no_other(tmp_path: Path, failure: str) -> None:
    async def scene(at: Place) -> None:
        gate = at.gate("a")
        one: list[str] = []
        two: list[str] = []
        first = asyncio.create_task(at.loans.lend((file("a"),), one))
        await rest()
        second = asyncio.create_task(at.loans.lend((file("a"),), two))
        await rest()
        del at.gates["a"]
        if failure == "cancel":
            first.cancel()
        else:
            gate.set_exception(TransferError("gone"))
        with pytest.raises((asyncio.CancelledError, TransferError)):
            await first
        await second
        assert (one, two, at.files()) == ([], ["a"], {"a": b"1"})

    run(tmp_path, scene)
