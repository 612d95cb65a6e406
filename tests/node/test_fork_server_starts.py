"""The node core by value: when the fork server of a computation is started, and what is told of it."""

from __future__ import annotations

import pytest
from corenode import ANNA, MAP, REDUCE, Node, done, forks, node, ready, recalled, spec
from msgspec.structs import replace

from dispy.model import BlobRef, JobSpec
from dispy.node import effects as do
from dispy.node import events as ev
from dispy.node.effects import Effects, Send
from dispy.wire import messages as msg

__all__ = ["node", "ready"]

READY = Send(ANNA, msg.ComputationReady(MAP))
WITH_SETUP = replace(spec(), has_setup=True)


def opened(node: Node, *, setup: bool = False) -> Effects:
    """Open MAP, whose files arrive."""
    node.lease()
    node.said(msg.OpenComputation(WITH_SETUP if setup else spec()))
    return node.handle(ev.ComputationPrepared(MAP))


def refused(reason: str, trace: str = "", *, final: bool = True) -> Send:
    return Send(ANNA, msg.ComputationRefused(MAP, reason, trace, final))


def test_an_open_computation_has_no_fork_server_before_its_first_job(node: Node) -> None:
    assert opened(node) == Effects([], [READY])
    assert node.run(1) == Effects([do.StartForkServer(MAP)], [])
    assert node.run(2) == Effects(), "it is started once"
    assert node.handle(ev.ForkServerStarted(MAP)) == Effects([do.ForkWorker(MAP, 1), do.ForkWorker(MAP, 2)], [READY])


def test_each_computation_has_its_own(node: Node) -> None:
    opened(node)
    node.said(msg.OpenComputation(spec(REDUCE)))
    node.handle(ev.ComputationPrepared(REDUCE))
    assert node.run(1, key=REDUCE).actions == [do.StartForkServer(REDUCE)]
    assert node.run(2).actions == [do.StartForkServer(MAP)]


def test_jobs_that_came_before_the_files_start_it(node: Node) -> None:
    node.lease()
    node.said(msg.OpenComputation(spec()))
    assert node.run(1) == Effects()
    assert node.handle(ev.ComputationPrepared(MAP)) == Effects([do.StartForkServer(MAP)], [READY])


def test_it_starts_while_the_arguments_of_the_first_job_arrive(node: Node) -> None:
    opened(node)
    blob = BlobRef(b"big", 1 << 20)
    effects = node.said(msg.RunJobs(MAP, [JobSpec(1, 1, 0, blob)]))
    assert effects.actions == [do.FetchArguments(ANNA, blob), do.StartForkServer(MAP)]


def test_setup_runs_when_the_computation_is_opened(node: Node) -> None:
    """Who gives a setup expects it to have run, or to hear that it fails, before the first job."""
    assert opened(node, setup=True) == Effects([do.StartForkServer(MAP)], [])
    assert node.handle(ev.ForkServerStarted(MAP)) == Effects([], [READY])
    assert forks(node.run(1)) == [MAP]


def test_setup_that_fails_is_told_before_any_job(node: Node) -> None:
    opened(node, setup=True)
    effects = node.handle(ev.ComputationFailed(MAP, "setup failed", "trace"))
    assert effects == Effects([do.CleanComputation(MAP, False)], [refused("setup failed", "trace")])


def test_code_that_cannot_be_loaded_gives_the_jobs_back_and_refuses_the_computation(node: Node) -> None:
    opened(node)
    node.run(1, 2)
    effects = node.handle(ev.ComputationFailed(MAP, "loading the code failed", "trace"))
    assert effects.sends == [refused("loading the code failed", "trace"), recalled(1, 2)]
    assert effects.actions == [do.CleanComputation(MAP, False)]
    assert node.run(3).sends == [recalled(3)], "it is being cleared away"
    assert node.handle(ev.ComputationCleaned(MAP)) == Effects()
    assert node.run(4).sends == [recalled(4)]


def test_a_close_before_any_job_runs_no_cleanup(node: Node) -> None:
    opened(node)
    assert node.said(msg.CloseComputation(MAP)) == Effects([do.CleanComputation(MAP, False)], [])


def test_a_close_waits_for_jobs_that_wait_for_the_fork_server(node: Node) -> None:
    opened(node)
    node.run(1)
    assert node.said(msg.CloseComputation(MAP)) == Effects()
    assert node.handle(ev.ForkServerStarted(MAP)) == Effects([do.ForkWorker(MAP, 1)], []), (
        "nobody asks whether it opens"
    )


def test_a_fork_server_that_fails_while_its_computation_closes_gives_the_jobs_back(node: Node) -> None:
    opened(node)
    node.run(1)
    node.said(msg.CloseComputation(MAP))
    effects = node.handle(ev.ComputationFailed(MAP, "loading the code failed"))
    assert effects == Effects([do.CleanComputation(MAP, False)], [recalled(1)])


def test_jobs_can_be_taken_back_and_cancelled_while_it_starts(node: Node) -> None:
    opened(node)
    node.run(1, 2)
    assert node.said(msg.RecallJobs(1)).sends == [recalled(2)]
    assert [type(each.message) for each in node.said(msg.CancelJobs([1])).sends] == [msg.JobsDone]
    assert node.handle(ev.ForkServerStarted(MAP)) == Effects([], [READY]), "no job is left to fork for"


def test_one_that_died_without_jobs_waits_for_the_next_one(ready: Node) -> None:
    assert ready.handle(ev.ForkServerDied(MAP, "x")) == Effects()
    assert ready.run(1) == Effects([do.StartForkServer(MAP)], [])


@pytest.mark.parametrize("setup", [False, True])
def test_one_that_is_killed_while_it_starts_is_started_again_twice(node: Node, setup: bool) -> None:
    """The jobs wait for it; the third death counts, whether it stood or not."""
    opened(node, setup=setup)
    node.run(1)
    assert node.handle(ev.ForkServerDied(MAP, "killed")) == Effects([do.StartForkServer(MAP)], [])
    node.handle(ev.ForkServerStarted(MAP))
    assert node.handle(ev.ForkServerDied(MAP, "killed")).actions == [do.StartForkServer(MAP)]
    node.run(2)
    effects = node.handle(ev.ForkServerDied(MAP, "killed"))
    assert effects.actions == [do.CleanComputation(MAP, False)]
    assert effects.sends[0] == refused("its fork server died 3 times in a row; last: killed")


def test_one_that_is_killed_while_it_starts_for_a_closing_computation_is_started_again(node: Node) -> None:
    opened(node)
    node.run(1)
    node.said(msg.CloseComputation(MAP))
    assert node.handle(ev.ForkServerDied(MAP, "killed")) == Effects([do.StartForkServer(MAP)], [])


def test_one_with_setup_that_died_is_started_again_at_once(node: Node) -> None:
    opened(node, setup=True)
    node.handle(ev.ForkServerStarted(MAP))
    assert node.handle(ev.ForkServerDied(MAP, "x")).actions == [do.StartForkServer(MAP)]


def test_none_is_started_for_a_refused_computation_whose_job_still_runs(node: Node) -> None:
    node.lease()
    node.open()
    node.run(1, 2)
    node.forked(1)
    effects = node.handle(ev.WorkerDied(2, 0, "x", setup_failed=True))
    assert not [each for each in effects.actions if isinstance(each, do.StartForkServer)]


def test_none_is_started_when_grace_is_over(node: Node) -> None:
    opened(node)
    node.handle(ev.LinkLost(ANNA, goodbye=False))
    assert node.wait(node.core.grace) == Effects()
    assert not [each for each in node.lease().actions if isinstance(each, do.StartForkServer)]


def test_a_scheduler_that_comes_back_hears_at_once_that_it_is_open(node: Node) -> None:
    opened(node)
    node.handle(ev.LinkLost(ANNA, goodbye=False))
    node.lease()
    assert node.said(msg.OpenComputation(spec())) == Effects([], [READY])
    node.run(1)
    node.handle(ev.ForkServerStarted(MAP))
    assert node.forked(1)
    assert done is not None
