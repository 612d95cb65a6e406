"""`recover_jobs` and `dispy recover` where no node has to be asked: what is in the file, who may have it."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import dispy
from dispy.cli import main
from dispy.errors import RecoveryError, SettingsError
from dispy.model import ComputationId, ComputationSpec, Ending, JobDone, JobOptions, JobState, NodeInfo, ProcessId
from dispy.nodes import NodeView
from dispy.recovery.book import (
    MAGIC,
    AnyEntry,
    Book,
    ClusterNoted,
    ClusterOver,
    ComputationStored,
    JobsHanded,
    JobStored,
    NodeCleared,
    NodeNoted,
    ProgramBegun,
    ResultKept,
    encode,
)
from dispy.recovery.file import RecoveryFile, new_path, store_of
from dispy.recovery.sorting import FORGETS_AFTER, Fetched, sort_out, stands_for, worth_asking
from dispy.resuming import PinnedJobs, ResumedMarks
from dispy.scheduler.effects import JobEnded
from dispy.scheduler.jobs import JobRecord
from dispy.secrets import find_credentials

FUNCTION = ClusterNoted(ComputationId("c"), "f", "function")
ONE, TWO = ProcessId("1"), ProcessId("2")
PROGRAM = ClusterNoted(ComputationId("c"), "p", "program")


def kept(job: int, result: object, ending: Ending = Ending.FINISHED, *, out: str = "", error: str = "") -> ResultKept:
    data = pickle.dumps(result) if ending is Ending.FINISHED else b""
    parts = (data, out.encode(), b"", error.encode())
    done = JobDone(job, 1, ending, 10.0, 12.0, *map(len, parts))
    return ResultKept(done, "10.0.0.7", b"".join(parts))


def write(path: Path, *entries: AnyEntry) -> Path:
    key_id = find_credentials(secret="ours").key_id
    begun = ProgramBegun(b"t" * 32, key_id, "", 9700, "me", "elsewhere", 1, "p.py", 1.0)
    RecoveryFile.create(path, [begun, *entries]).close()
    return path


class Unknown:
    """Stands for a class of a program that is gone."""

    def __reduce__(self) -> Any:
        return (eval, ("Elsewhere()",))


def test_what_was_fetched_and_not_returned_is_returned_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x", FUNCTION, kept(2, "two", out="said"), kept(1, 1), kept(3, None, Ending.RAISED, error="Oh: no")
    )
    one, two, three = dispy.recover_jobs(path, secret="ours")
    assert (one.id, one.result, one.status, one()) == (1, 1, dispy.DispyJob.Finished, 1)
    assert (two.result, two.stdout, two.stderr, two.ip_addr) == ("two", "said", "", "10.0.0.7")
    assert (two.start_time, two.end_time, two.submit_time) == (10.0, 12.0, 10.0)
    assert (three.status, three.exception, three.result) == (dispy.DispyJob.Terminated, "Oh: no", None)
    assert dispy.recover_jobs(path, secret="ours") == []


def test_a_result_that_cannot_be_unpickled_waits_for_a_program_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "x", FUNCTION, kept(1, (Unknown(), bytes(100_000)), out="said"), kept(2, 2))
    one, two = dispy.recover_jobs(path, secret="ours")
    assert one.status == dispy.DispyJob.Terminated
    assert "cannot be unpickled in this program: NameError: name 'Elsewhere'" in one.exception
    assert one.exception.endswith(f"call dispy.recover_jobs({str(path)!r}) in a program that has its class")
    assert (one.stdout, two.result) == ("said", 2)
    [again] = dispy.recover_jobs(path, secret="ours")
    assert (again.id, again.status) == (1, dispy.DispyJob.Terminated)
    monkeypatch.setattr(builtins, "Elsewhere", lambda: "opened", raising=False)
    [opened] = dispy.recover_jobs(path, secret="ours")
    assert (opened.result[0], opened.status) == ("opened", dispy.DispyJob.Finished)
    assert dispy.recover_jobs(path, secret="ours") == []


class Interrupting:
    """Raises KeyboardInterrupt when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise KeyboardInterrupt('of the class')",))


@pytest.mark.parametrize("padding", [b"", bytes(100_000)], ids=["small", "large"])
def test_a_result_that_interrupts_costs_itself_alone(tmp_path: Path, padding: bytes) -> None:
    path = write(tmp_path / "x", FUNCTION, kept(1, (Interrupting(), padding)), kept(2, 2))
    one, two = dispy.recover_jobs(path, secret="ours")
    assert (one.status, two.result) == (dispy.DispyJob.Terminated, 2)
    assert "cannot be unpickled in this program: KeyboardInterrupt: of the class" in one.exception
    assert one.exception.endswith("in a program that has its class")


def test_an_id_that_interrupts_is_the_number_of_its_job(tmp_path: Path) -> None:
    path = write(tmp_path / "x", FUNCTION, kept(1, 1))
    stored = JobStored(1, FUNCTION.id, pickle.dumps(Interrupting()), b"")
    folder = store_of(path)
    folder.mkdir()
    (folder / "jobs-000001").write_bytes(MAGIC + encode([stored]))
    [job] = dispy.recover_jobs(path, secret="ours")
    assert (job.id, job.result) == (1, 1)


def test_the_newest_file_is_taken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DISPY_SECRET", "ours")
    assert dispy.recover_jobs() == []
    assert "nothing to recover in" in capsys.readouterr().err
    other = write(new_path(), kept(1, 1))
    assert [job.result for job in dispy.recover_jobs()] == [1]
    assert dispy.recover_jobs() == []
    assert dispy.recover_jobs(other) == []


def test_whose_file_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x", kept(1, 1))
    with pytest.raises(RecoveryError, match=r"another secret than the one found here \(argument\)"):
        dispy.recover_jobs(path, secret="another")
    in_use, _ = RecoveryFile.open(path)
    with pytest.raises(RecoveryError, match="is in use"):
        dispy.recover_jobs(path, secret="ours")
    in_use.close()
    with pytest.raises(RecoveryError, match="No such file"):
        dispy.recover_jobs(tmp_path / "missing", secret="ours")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(RecoveryError, match="not a recovery file"):
        dispy.recover_jobs(tmp_path / "text", secret="ours")
    with pytest.raises(SettingsError, match="timeout"):
        dispy.recover_jobs(path, timeout=-1, secret="ours")
    assert len(dispy.recover_jobs(path, secret="ours")) == 1


def test_a_node_that_does_not_answer_is_named_and_stays(
    tmp_path: Path, free_base_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    node = NodeNoted(ProcessId("n" * 32), "far", (("127.0.0.1", free_base_port),))
    path = write(tmp_path / "x", node, kept(1, 1))
    assert [job.result for job in dispy.recover_jobs(path, 0.3, secret="ours")] == [1]
    said = capsys.readouterr().err
    assert f"not all is recovered: node far (127.0.0.1:{free_base_port}) does not answer: nothing listens" in said
    assert "call again for the rest" in said
    file, book = RecoveryFile.open(path)
    file.close()
    assert list(book.nodes) == [node.process]
    assert not book.is_done


def test_the_programs_own_node_that_has_ended_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    node = NodeNoted(ProcessId("n" * 32), "own", (("127.0.0.1", 1),), str(tmp_path / "handle"))
    assert dispy.recover_jobs(write(tmp_path / "x", node), secret="ours") == []
    assert "what it held is lost" in capsys.readouterr().err


def test_old_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x", kept(1, 1))
    with pytest.warns(DeprecationWarning, match="recover_jobs"):
        jobs = dispy.fault_recover_jobs(fault_recover_file=path, secret="ours")
    assert [job.result for job in jobs] == [1]


# ---- the command ----


def run(*words: str) -> Any:
    return CliRunner().invoke(main, ["recover", *words, "--secret", "ours"])


def test_the_command_prints_functions(tmp_path: Path) -> None:
    path = write(tmp_path / "x", FUNCTION, kept(1, {"a": 1}, out="said"), kept(2, None, Ending.DIED, error="killed"))
    done = run(str(path))
    assert done.exit_code == 1
    assert done.stdout.startswith("== job 1  (Finished on 10.0.0.7 after 2.00 s)\nsaid\n{'a': 1}\n== job 2")
    assert "dispy: job 2: Terminated on 10.0.0.7 after 2.00 s\nkilled\n" in done.stderr
    assert run(str(path)).exit_code == 0


def test_the_command_leaves_what_it_cannot_open(tmp_path: Path) -> None:
    path = write(tmp_path / "x", FUNCTION, kept(1, Unknown(), out="said"))
    done = run(str(path))
    assert done.exit_code == 1
    assert done.stdout == "== job 1  (Finished on 10.0.0.7 after 2.00 s)\nsaid\n"
    assert f"has its class: call dispy.recover_jobs({str(path)!r}) there\n" in done.stderr
    shown = json.loads(run(str(path), "--json").stdout)
    assert (shown["status"], shown["result"], shown["stdout"]) == ("Finished", None, "said")
    assert "cannot be unpickled" in shown["exception"]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_what_could_not_be_printed_is_printed_by_the_next_call(tmp_path: Path, form: list[str]) -> None:
    """Whoever read the output has gone."""
    path = write(tmp_path / "x", FUNCTION, kept(1, 11))
    words = [sys.executable, "-m", "dispy.cli", "recover", str(path), "--secret", "ours", *form]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert done.returncode
    assert "Traceback" not in done.stderr
    assert "11" in run(str(path), *form).stdout
    assert not run(str(path), *form).stdout


class Unshowable:
    """Has no repr."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_result_without_a_repr_is_shown_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "x", FUNCTION, kept(1, Unshowable()), kept(2, 22))
    assert "<Unshowable: its repr raises RuntimeError>\n== job 2" in run(str(path)).stdout


def test_the_command_fails_when_not_all_is_there(tmp_path: Path, free_base_port: int) -> None:
    node = NodeNoted(ProcessId("n" * 32), "far", (("127.0.0.1", free_base_port),))
    path = write(tmp_path / "it is", FUNCTION, node, kept(1, 1))
    done = run(str(path), "--timeout", "0.2")
    assert done.exit_code == 1
    assert f"call again for the rest: dispy recover '{path}'" in done.stderr
    assert "were any, are gone: durable=True keeps them" in done.stderr


def test_jobs_that_a_node_had_and_has_no_more_are_abandoned(tmp_path: Path) -> None:
    node = NodeNoted(ONE, "far", (("127.0.0.1", 1),))
    path = write(tmp_path / "x", FUNCTION, node, JobsHanded(ONE, [1, 2]), kept(1, 1), NodeCleared(ONE))
    one, two = dispy.recover_jobs(path, secret="ours")
    assert (one.result, two.id, two.status) == (1, 2, dispy.DispyJob.Abandoned)
    assert "it ran on node far after its program was killed" in two.exception
    assert dispy.recover_jobs(path, secret="ours") == []


def test_nothing_to_fetch_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispy.recover_jobs(write(tmp_path / "x"), secret="ours") == []
    assert "nothing to fetch" in capsys.readouterr().err


def test_the_command_prints_json(tmp_path: Path) -> None:
    done = run(str(write(tmp_path / "x", FUNCTION, kept(1, {1, 2}), kept(2, [3]))), "--json")
    one, two = map(json.loads, done.stdout.splitlines())
    assert (one["result"], two["result"], two["status"]) == ("{1, 2}", [3], "Finished")
    assert done.exit_code == 0


def test_the_command_prints_programs(tmp_path: Path) -> None:
    done = run(str(write(tmp_path / "x", PROGRAM, kept(1, 3, out="said"))), "--json")
    assert json.loads(done.stdout)["exit_code"] == 3
    assert done.exit_code == 1
    done = run(str(write(tmp_path / "y", PROGRAM, kept(1, 0, out="said"))))
    assert done.stdout == "== job 1  (exit code 0 on 10.0.0.7 after 2.00 s)\nsaid\n"
    assert done.exit_code == 0


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = run(str(tmp_path / "missing"))
    assert done.exit_code == 1
    assert "cannot be opened: No such file" in done.stderr


# ---- which durable jobs can still run ----


def book(*entries: AnyEntry, reentrant: bool = False, options: JobOptions | None = None) -> Book:
    spec = ComputationSpec(FUNCTION.id, "f", "function")
    begun = ProgramBegun(b"t" * 32, b"k" * 8, "", 9700, "me", "here", 1, "p.py", 1.0)
    job = JobStored(1, spec.id, b"", b"args", options)
    return Book([begun, FUNCTION, ComputationStored(spec, [], reentrant, False, False), job, *entries])


NOTED = [NodeNoted(ONE, "one", ()), NodeNoted(TWO, "two", ())]
HANDED = JobsHanded(ONE, [1])


@pytest.mark.parametrize(
    ("known", "fetched", "age", "what"),
    [
        (book(*NOTED), Fetched(), 0.0, "runs"),
        (book(*NOTED, HANDED), Fetched(), 0.0, "undecided"),
        (book(NOTED[1], HANDED), Fetched(), 0.0, "abandoned"),
        (book(NOTED[1], HANDED), Fetched(answered={ONE}), 0.0, "runs"),
        (book(NOTED[1], HANDED), Fetched(answered={ONE}), FORGETS_AFTER, "abandoned"),
        (book(NOTED[1], HANDED), Fetched(answered={TWO}), 0.0, "abandoned"),
        (book(NOTED[1], HANDED), Fetched(not_started={1}), 1e6, "runs"),
        (book(NOTED[1], HANDED, JobsHanded(ProcessId(""), [1])), Fetched(), 1e6, "runs"),
        (book(HANDED, reentrant=True), Fetched(), 1e6, "runs"),
        (book(HANDED, options=JobOptions(retries=1)), Fetched(), 1e6, "runs"),
        (book(*NOTED, HANDED, reentrant=True), Fetched(), 0.0, "undecided"),
        (book(kept(1, 1)), Fetched(), 0.0, "has ended"),
    ],
)
def test_a_durable_job_runs_only_if_it_cannot_have_started(
    known: Book, fetched: Fetched, age: float, what: str
) -> None:
    found = sort_out(known, fetched, age, terminate=False)
    assert [stored.job for stored in found.runnable] == ([1] if what == "runs" else [])
    assert {job: state for job, (state, _) in found.ended.items()} == (
        {1: JobState.Abandoned} if what == "abandoned" else {}
    )
    assert found.undecided == (what == "undecided")


def test_the_node_of_an_abandoned_job_has_a_name() -> None:
    known = book(*NOTED, HANDED, NodeCleared(ONE))
    _, cause = sort_out(known, Fetched(), 0.0, terminate=False).ended[1]
    assert "handed to node one when" in cause


def test_pending_jobs_can_be_ended() -> None:
    found = sort_out(book(), Fetched(), 0.0, terminate=True)
    assert not found.runnable
    assert found.ended[1][0] is JobState.Cancelled
    found = sort_out(book(*NOTED, HANDED, NodeCleared(ONE)), Fetched(), 0.0, terminate=True)
    assert found.ended[1][0] is JobState.Abandoned, "it may have started"


def test_a_job_whose_cluster_is_over_does_not_wait_for_ever() -> None:
    """Its end was marked after the callbacks about it, which came after the end of the cluster."""
    state, cause = sort_out(book(ClusterOver(FUNCTION.id)), Fetched(), 0.0, terminate=False).ended[1]
    assert state is JobState.Abandoned
    assert cause.startswith("its cluster was closed")


def test_what_only_the_programs_own_node_could_run_ends_with_it() -> None:
    own = NodeNoted(ONE, "one", (), "/handle")
    assert sort_out(book(own, options=JobOptions(ONE)), Fetched(), 0.0, terminate=False).ended[1][0] is (
        JobState.Abandoned
    )
    assert sort_out(book(*NOTED, options=JobOptions(ONE)), Fetched(), 0.0, terminate=False).runnable


def test_a_node_is_known_by_its_name_when_it_was_started_again() -> None:
    here, there = (("127.0.0.1", 9701),), (("127.0.0.1", 9801),)
    one, again, other = ProcessId("1"), ProcessId("3"), ProcessId("2")
    noted = NodeNoted(one, "host", here)
    known = book(noted, NodeNoted(other, "host", there), NodeCleared(other))
    assert stands_for(known, noted, one, "renamed")
    assert stands_for(known, noted, again, "host")
    assert not stands_for(known, noted, again, "elsewhere")
    assert not stands_for(known, noted, other, "host"), "another node of the same name"
    known.add(NodeNoted(again, "host", here))
    assert stands_for(known, noted, again, "host")
    assert not stands_for(known, NodeNoted(one, "host", here, "/handle"), again, "host")


GIVEN_UP = {1: (JobState.Abandoned, "node one was lost")}


@pytest.mark.parametrize(
    ("known", "ended", "nodes"),
    [
        (book(*NOTED, HANDED), GIVEN_UP, {ONE}),
        (book(*NOTED, HANDED), {1: (JobState.Cancelled, "")}, set()),
        (book(*NOTED, HANDED), {}, set()),
        (book(*NOTED), GIVEN_UP, set()),
        (book(*NOTED, HANDED, kept(1, 1)), GIVEN_UP, set()),
        (book(*NOTED, HANDED, NodeCleared(ONE)), GIVEN_UP, set()),
    ],
)
def test_nodes_are_asked_again_for_results_of_jobs_that_were_given_up(
    known: Book, ended: dict[int, tuple[JobState, str]], nodes: set[ProcessId]
) -> None:
    assert worth_asking(known, ended) == nodes


def test_a_result_that_comes_after_its_job_was_given_up_is_kept(tmp_path: Path) -> None:
    with_it = book(*NOTED, HANDED)
    file, _ = RecoveryFile.open(write(tmp_path / "x"))
    marks = ResumedMarks(file, with_it)
    record = JobRecord(1, FUNCTION.id, b"")
    marks.over([JobEnded(record, JobState.Abandoned, cause="node one was lost")], str)
    assert marks.ended == GIVEN_UP
    late = kept(1, "late")
    marks.dropped(late.done, memoryview(late.body), "10.0.0.7")
    assert marks.ended == {}
    assert with_it.results == {1: late}
    marks.dropped(kept(1, "again").done, b"", "10.0.0.7")
    marks.dropped(kept(2, "of a job that has a result").done, b"", "10.0.0.7")
    assert with_it.results == {1: late}
    file.close()


def test_pinned_jobs_are_held_until_their_node_comes() -> None:
    submitted: list[JobRecord] = []
    pinned = PinnedJobs(book(*NOTED), submitted.extend)
    other, mine = ComputationId("d"), JobRecord(1, FUNCTION.id, b"", options=JobOptions(ONE))
    assert pinned.hold([mine, free := JobRecord(2, other, b"")]) == [free]
    assert pinned.holds(FUNCTION.id)
    assert not pinned.holds(other)
    view = NodeView(ProcessId("3"), NodeInfo(ProcessId("3"), "one", 1, "x", ()), "10.0.0.1", 9701)
    pinned.node_came(view)
    assert submitted == [mine]
    assert mine.pinned == "3"
    assert not pinned.holds(FUNCTION.id)
