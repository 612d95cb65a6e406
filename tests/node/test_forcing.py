"""The node core by value: jobs that are cancelled, and those that are over their time."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from corenode import MAP, Answer, Node, ahead, done, gone, heavy, node, ready

from dispy.model import Ending
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects
from dispy.node.slots import INTERRUPT_INTERVAL
from dispy.node.verdicts import over_time
from dispy.wire import messages as msg

__all__ = ["node", "ready"]


def test_cancel_of_a_queued_job(ready: Node) -> None:
    ready.run(1, 2, 3)
    assert ready.said(msg.CancelJobs([3, 99])) == Effects([], [gone(3, 3)])
    assert ready.said(msg.CancelJobs([3])) == Effects()


def test_cancel_of_a_running_job_escalates(ready: Node) -> None:
    ready.run(1)
    assert ready.said(msg.CancelJobs([1])).actions == [do.CancelInWorker(MAP, 1, 2)]
    interrupts = ready.wait(5.95).actions
    assert interrupts == [do.CancelInWorker(MAP, 1, 2)] * len(interrupts)
    assert 55 < len(interrupts) < 62
    assert ready.wait(0.1).actions[-1] == do.SignalWorker(MAP, 1, 2, signal.SIGTERM)
    assert ready.wait(1.8).actions == []
    assert ready.wait(0.2).actions[0] == do.SignalWorker(MAP, 1, 2, signal.SIGKILL)
    effects = ready.handle(ev.WorkerDied(1, 2, "killed by SIGKILL"))
    message = effects.sends[0].message
    assert isinstance(message, msg.JobsDone)
    assert message.jobs[0].ending == Ending.INTERRUPTED
    ready.said(msg.AckResults(3))
    assert ready.wait(2) == Effects()
    assert ready.core.next_deadline() is None


def test_cancel_that_comes_too_late_changes_nothing(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.CancelJobs([1]))
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends == [done(3, 1)]
    ready.said(msg.AckResults(3))
    assert ready.wait(2) == Effects()
    assert ready.core.next_deadline() is None


def test_cancel_of_a_job_that_lies_ready_in_a_worker(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3, 4)
    assert ready.said(msg.CancelJobs([2])).actions == [do.RecallFromWorker(MAP, 1, 4)]
    effects = ready.handle(ev.WorkerRecalled(1, 3, 4))
    assert effects.sends == [gone(3, 2)]


def test_cancel_of_a_job_that_the_worker_began_meanwhile(ready: Node) -> None:
    ready.core.lease.computations[MAP].mean = 0.001  # type: ignore[union-attr]
    ready.run(1, 2, 3, 4)
    ready.said(msg.CancelJobs([2]))
    assert ready.handle(ev.WorkerRecalled(1, 4, 4)) == Effects()
    actions = ready.handle(ev.WorkerAnswered(1, [Answer(2)])).actions
    assert do.CancelInWorker(MAP, 1, 3) in actions


def test_a_time_limit_counts_while_the_job_runs(ready: Node) -> None:
    heavy(ready, 1, 2, timeout=5.0)
    ready.run(3)
    heavy(ready, 4, timeout=5.0)
    assert ready.wait(4.9) == Effects()
    ready.handle(ev.WorkerAnswered(1, [Answer(2)]))
    assert ready.wait(0.2).actions[0] == do.CancelInWorker(MAP, 2, 2), "job 2"
    ready.handle(ev.WorkerAnswered(2, [Answer(2, Ending.INTERRUPTED, 50.0, 55.0)]))
    interrupts = [action for action in ready.wait(5.2).actions if isinstance(action, do.CancelInWorker)]
    assert {(action.worker, action.sequence) for action in interrupts} == {(2, 3)}, "job 4, after job 3 of worker 1"


def test_a_job_over_its_time_is_told_as_limited(ready: Node) -> None:
    heavy(ready, 1, timeout=2.0)
    ready.wait(2.05)
    answer = Answer(2, Ending.INTERRUPTED, 50.0, 52.0, 0, 1, 1, 2, b"oeER")
    sent: Any = ready.handle(ev.WorkerAnswered(1, [answer])).sends[0]
    told = sent.message.jobs[0]
    assert told.ending == Ending.LIMITED
    assert sent.payload == [b"oe%b\nER" % over_time(2.0, 2.0).encode()]
    assert told.error_size == len(sent.payload[0]) - 2
    ready.said(msg.AckResults(99))
    ready.wait(2)
    assert ready.core.next_deadline() is None


def test_a_job_that_ends_although_its_time_was_over_has_ended(ready: Node) -> None:
    heavy(ready, 1, timeout=2.0)
    ready.wait(2.05)
    assert ready.handle(ev.WorkerAnswered(1, [Answer(2)])).sends == [done(3, 1)]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_job_that_dies_over_its_time(ready: Node, cancelled: bool) -> None:
    heavy(ready, 1, timeout=2.0)
    ready.wait(2.05)
    if cancelled:
        assert ready.said(msg.CancelJobs([1])) == Effects(), "it is being ended"
    sent: Any = ready.handle(ev.WorkerDied(1, 2, "killed", started=50.0, ended=53.0)).sends[0]
    text = b"its worker process ended: killed" if cancelled else b"%b (killed)" % over_time(3.0, 2.0).encode()
    assert sent.payload == [text]
    assert sent.message.jobs[0].ending == (Ending.INTERRUPTED if cancelled else Ending.LIMITED)


def test_a_job_that_a_limit_ended_has_the_words_of_the_limit(ready: Node) -> None:
    heavy(ready, 1, memory=1 << 20)
    sent: Any = ready.handle(ev.WorkerDied(1, 2, "memory: 2 MB", limited=True, ended=53.0)).sends[0]
    assert sent.payload == [b"memory: 2 MB"]
    assert sent.message.jobs[0].ending == Ending.LIMITED
    assert sent.message.jobs[0].started_at == 53.0


def test_a_job_that_dies_over_its_time_and_has_not_said_when_it_began(ready: Node) -> None:
    heavy(ready, 1, timeout=2.0)
    ready.wait(2.05)
    sent: Any = ready.handle(ev.WorkerDied(1, 2, "killed", ended=53.0)).sends[0]
    assert sent.payload == [b"%b (killed)" % over_time(2.0, 2.0).encode()]


def test_a_timer_of_something_else_hurries_nothing(ready: Node) -> None:
    ready.run(1)
    ready.said(msg.CancelJobs([1]))
    assert ready.core.handle_timeout(0.5 * INTERRUPT_INTERVAL) == Effects()
    assert ready.core.handle_timeout(INTERRUPT_INTERVAL).actions == [do.CancelInWorker(MAP, 1, 2)]


def test_a_job_that_is_being_ended_is_not_ended_anew_by_what_its_worker_says(ready: Node) -> None:
    ahead(ready, 1, 2, 3, 4)
    ready.said(msg.CancelJobs([1]))
    assert ready.handle(ev.WorkerAnswered(1, [])) == Effects()
