"""`dispy status`, `dispy jobs`, `dispy cancel`: what a shared scheduler has, and an end for what is one's own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dispy.cli.options import NORMALIZED
from dispy.cli.pool import (
    Target,
    connected,
    find_cluster,
    own_tokens,
    owner_of,
    scheduler_options,
    take_status,
    take_target,
)
from dispy.clicknumbers import WholeNumber
from dispy.errors import LinkLost
from dispy.words import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dispy.wire.inquiries import CancelTold, JobsTold
    from dispy.wire.pool import JobStatus, PoolStatus

WIDTH_OF_PIPES = 200
"""Columns of a table that goes to no terminal."""


@click.command(short_help="Show a shared scheduler: nodes, users, clusters.", context_settings=NORMALIZED)
@scheduler_options
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(as_json: bool, **options: Any) -> None:
    """Show how a scheduler stands that programs share: its nodes, its users, and their clusters.

    A star marks clusters of your own. A user is shown plainly if a certificate or the machine proves who it is, else
    as what he or she claims.
    """
    told = asyncio.run(_status(take_target(options)))
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(told)))
        return
    from dispy.cli.poolview import pool_view

    show(pool_view(told))


@click.command(short_help="List jobs of a shared scheduler.", context_settings=NORMALIZED)
@click.argument("cluster", required=False)
@click.option(
    *("-m", "--most"),
    type=WholeNumber(1, 1_000_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="At most so many jobs of each cluster.",
)
@scheduler_options
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object per job.")
def jobs(cluster: str | None, most: int, as_json: bool, **options: Any) -> None:
    """List the jobs of your clusters, or of CLUSTER: its name, or the beginning of its number."""
    pool, told = asyncio.run(_jobs(take_target(options), cluster, most))
    names: dict[str, str] = {each.cluster: each.name for each in pool.clusters}
    if as_json:
        for job in told.jobs:
            click.echo(json.dumps(_shown(job, names.get(job.cluster, ""))))
    elif told.jobs:
        from dispy.cli.poolview import job_table

        show(job_table(told.jobs, names))
    else:
        click.echo(_why_none(pool, cluster))
    if told.more:
        click.echo(f"{counted(told.more, 'further job')} not shown: --most shows more", err=True)


@click.command(short_help="Cancel jobs at a shared scheduler.", context_settings=NORMALIZED)
@click.argument("cluster")
@click.argument("numbers", nargs=-1, type=WholeNumber(1), metavar="[JOB]…")
@scheduler_options
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object.")
def cancel(cluster: str, numbers: tuple[int, ...], as_json: bool, **options: Any) -> NoReturn:
    """End the JOBs of CLUSTER (all of its jobs if none is named): its name, or the beginning of its number.

    The exit code is 0 if jobs are being ended, and all of those that are named, else 1.
    """
    told = asyncio.run(_cancel(take_target(options), cluster, numbers))
    sentence = told.sentence or f"{counted(told.count, 'job is', 'jobs are')} being ended."
    asked = len(set(numbers))
    if told.count and told.count < asked:
        sentence = (
            f"{told.count} of {asked} jobs are being ended; the others have ended, or the cluster never had them."
        )
    if as_json:
        click.echo(json.dumps({"count": told.count, "answer": sentence}))
    else:
        click.echo(sentence, err=told.count < (asked or 1))
    sys.exit(0 if told.count >= (asked or 1) else 1)


def show(view: RenderableType) -> None:
    """Print a table: wide where nobody's terminal bounds it."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_PIPES)
    console.print(view, markup=False, highlight=False)


async def _status(target: Target) -> PoolStatus:
    async with connected(target) as asking:
        return await take_status(asking, own_tokens(target))


async def _jobs(target: Target, wanted: str | None, most: int) -> tuple[PoolStatus, JobsTold]:
    from dispy.model import ComputationId
    from dispy.wire.inquiries import AskJobs, JobsTold

    tokens = own_tokens(target)
    async with connected(target) as asking:
        pool = await take_status(asking, tokens)
        cluster = find_cluster(pool, wanted) if wanted else ComputationId("")
        told = await asking.ask(lambda number: AskJobs(number, tokens, cluster, most))
    if not isinstance(told, JobsTold):
        raise _unexpected(told)
    if cluster and not told.jobs and target.admin is None:
        asked = next(each for each in pool.clusters if each.cluster == cluster)
        if not asked.mine:
            raise click.ClickException(
                f"cluster {asked.name} belongs to {owner_of(asked)}: its jobs are shown where its program was started, "
                "and to admins (--admin)"
            )
    return pool, told


async def _cancel(target: Target, wanted: str, numbers: Sequence[int]) -> CancelTold:
    from dispy.wire.inquiries import CancelFor, CancelTold

    tokens = own_tokens(target)
    async with connected(target) as asking:
        cluster = find_cluster(await take_status(asking, tokens), wanted)
        told = await asking.ask(lambda number: CancelFor(number, tokens, cluster, tuple(numbers)))
    if not isinstance(told, CancelTold):
        raise _unexpected(told)
    return told


def _unexpected(told: object) -> LinkLost:
    return LinkLost(f"the scheduler answered {type(told).__name__}, which this version of dispy does not expect")


def _shown(job: JobStatus, name: str) -> dict[str, object]:
    import msgspec

    return {**msgspec.structs.asdict(job), "state": job.state.name, "name": name}


def _why_none(pool: PoolStatus, cluster: str | None) -> str:
    if not pool.clusters:
        return "No cluster is open."
    if cluster or any(each.mine for each in pool.clusters):
        return "No jobs."
    there = counted(len(pool.clusters), "cluster of others", "clusters of others")
    return (
        f"No cluster here is known to be yours ({there}). What proves it are the recovery files of your programs on "
        "this machine; --admin shows all."
    )
