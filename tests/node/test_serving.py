"""Results that wait for their acknowledgement, and the texts of dead workers."""

from __future__ import annotations

from dispy.model import BlobRef, Ending, HeldAttempt, JobDone
from dispy.node.results import Freed, Results
from dispy.node.verdicts import DEATH_OUTPUT, clip, death_text


def job(number: int, attempt: int = 1, blob: BlobRef | None = None) -> JobDone:
    return JobDone(number, attempt, 0, 1.0, 2.0, 1, 0, 0, 0, blob)


def keep(results: Results, *jobs: JobDone) -> int:
    for each in jobs:
        results.attempts[each.job] = each.attempt
    return results.add(list(jobs), [], 0.0).message.sequence


def test_results_are_kept_until_acknowledged() -> None:
    results = Results()
    large = BlobRef(b"n" * 32, 1 << 20, False)
    assert keep(results, job(1), job(2, blob=large)) == 1
    assert keep(results, job(3)) == 2
    assert list(results.held()) == [HeldAttempt(1, 1), HeldAttempt(2, 1), HeldAttempt(3, 1)]
    assert results.acknowledge(1).blobs == [large.name]
    assert list(results.held()) == [HeldAttempt(3, 1)]
    assert results.attempts == {3: 1}
    assert results.acknowledge(1) == Freed()
    assert results.acknowledge(9).blobs == []
    assert results.attempts == {}


def test_an_old_acknowledgement_keeps_the_newer_attempt() -> None:
    results = Results()
    keep(results, job(1, attempt=1))
    keep(results, job(1, attempt=2))
    results.acknowledge(1)
    assert results.attempts == {1: 2}


def test_long_output_loses_its_middle() -> None:
    assert clip(b"short") == b"short"
    text = clip(b"a" * DEATH_OUTPUT + b"b" * DEATH_OUTPUT)
    assert text.startswith(b"aaa")
    assert text.endswith(b"bbb")
    assert b"262144 bytes of output left out" in text


def test_the_last_lines_of_stderr_stand_in_the_error() -> None:
    assert death_text("it died", b"") == "it died"
    lines = b"\n".join(b"line %d" % number for number in range(100)) + b"\n\xff\n"
    text = death_text("it died", lines)
    assert text.startswith("it died\nThe last lines of its stderr:\nline 81\n")
    assert text.endswith("line 99\n\ufffd")
    assert len(death_text("it died", b"x" * 100_000)) < 2200


def test_output_at_the_limit_stays_whole() -> None:
    assert clip(b"a" * DEATH_OUTPUT) == b"a" * DEATH_OUTPUT


def test_as_many_interim_results_stay_as_are_allowed() -> None:
    results = Results()
    for size in (5, 4):
        results.add([JobDone(1, 1, Ending.PROVISIONAL, 0.0, 1.0, size, 0, 0, 0)], [b"x" * size], 0.0)
    results.drop_interim(most=2, size=9)
    assert len(results.batches) == 2
    results.drop_interim(most=2, size=8)
    assert [batch.size for batch in results.batches] == [4]
