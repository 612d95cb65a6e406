"""`dispy top`: a shared scheduler as it stands, again and again, until `q` is pressed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from dispy.cli.options import NORMALIZED
from dispy.cli.pool import PoolLink, Target, connected, own_tokens, scheduler_options, take_status, take_target
from dispy.cli.status import show
from dispy.clicknumbers import Number
from dispy.errors import LinkError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from dispy.wire.pool import PoolStatus

REDIAL_INTERVAL = 1.0
"""Seconds until a scheduler that has gone is dialled again."""
_FRAME_ROWS = 14
"""Rows of the screen for headings, empty lines and what says how to leave."""
_TABLES = 3


@click.command(short_help="Watch a shared scheduler.", context_settings=NORMALIZED)
@scheduler_options
@click.option(
    *("-i", "--interval"),
    type=Number(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two looks.",
)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print one JSON object, once.")
def top(interval: float, as_json: bool, **options: Any) -> None:
    """Show what `dispy status` shows, again and again, until q or Ctrl-C is pressed.

    Where standard output is no terminal it is printed once.
    """
    target = take_target(options)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_watch(target, interval) if sys.stdout.isatty() and not as_json else _once(target, as_json))


async def _once(target: Target, as_json: bool) -> None:
    async with connected(target) as asking:
        told = await take_status(asking, own_tokens(target))
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(told)))
    else:
        from dispy.cli.poolview import pool_view

        show(pool_view(told))


async def _watch(target: Target, interval: float) -> None:
    from rich.live import Live

    left = asyncio.Event()
    async with connected(target) as asking:
        told = await take_status(asking, own_tokens(target))
        with _keys(left.set), Live(auto_refresh=False, screen=True) as live:
            _draw(live, told)
            trouble = await _follow(live, asking, target, interval, left)
            while trouble and not left.is_set():
                _draw(live, told, trouble)
                await _pause(left, REDIAL_INTERVAL)
                trouble = await _again(live, target, interval, left)


async def _again(live: Live, target: Target, interval: float, left: asyncio.Event) -> str:
    """Dial once more, and follow; returns why that ended, or nothing if the user has left."""
    try:
        async with connected(target) as asking:
            return await _follow(live, asking, target, interval, left)
    except LinkError as error:
        return str(error)


async def _follow(live: Live, asking: PoolLink, target: Target, interval: float, left: asyncio.Event) -> str:
    """Draw what the scheduler tells until the user leaves, or the link ends: then it returns why."""
    while not left.is_set():
        try:
            told = await take_status(asking, own_tokens(target))
        except LinkError as error:
            return str(error)
        _draw(live, told)
        await _pause(left, interval)
    return ""


async def _pause(left: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(left.wait(), seconds)


def _draw(live: Live, told: PoolStatus, trouble: str = "") -> None:
    from rich.console import Group
    from rich.text import Text

    from dispy.cli.poolview import pool_view

    most = max(3, (live.console.height - _FRAME_ROWS) // _TABLES)
    foot: list[RenderableType] = ["", Text(f"{trouble} (trying again)" if trouble else "q: leave", style="dim")]
    live.update(Group(pool_view(told, most=most), *foot), refresh=True)


@contextlib.contextmanager
def _keys(leave: Callable[[], None]) -> Iterator[None]:
    """Call `leave` when q is pressed, for as long as the block runs; not where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import os
    import termios
    import tty

    descriptor, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(descriptor)

    def pressed() -> None:
        if set(os.read(descriptor, 64)) & set(b"qQ\x04"):
            leave()

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, pressed)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
