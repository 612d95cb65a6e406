"""What the owner of a node orders and is told, the same at its terminal and over an admin link."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from dispy.errors import SettingsError
from dispy.model import AvailInfo, NodeOrder, NodeStatus
from dispy.node import events as ev
from dispy.node import vitals
from dispy.node.core import NodeCore
from dispy.node.offer import Offer
from dispy.node.settings import NodeSettings
from dispy.node.window import ServiceWindow, clock_text, read_hours
from dispy.wire.messages import AnyMessage, AskStatus, NodeSteered, StatusTold, SteerNode
from dispy.words import counted, size

logger = logging.getLogger("dispy.node")


class Steering(Struct, frozen=True):
    """Obeys orders and tells how the node is. To be used on the event loop's thread."""

    settings: NodeSettings
    core: NodeCore
    offer: Offer
    post: Callable[[ev.Event], None]
    set_window: Callable[[ServiceWindow | None], None]
    """Serve in these hours from now on."""

    def obey(self, order: NodeOrder, cpus: int = 0, hours: str = "") -> NodeSteered:
        """Carry out an order; `cpus` and `hours` are for the orders of these names."""
        match order:
            case NodeOrder.QUIT | NodeOrder.EXIT:
                at_once = order is NodeOrder.QUIT
                self.post(ev.ExitAsked(at_once))
                return NodeSteered(True, "ending now" if at_once else "ending after the jobs that are here (quit: now)")
            case NodeOrder.STOP | NodeOrder.START:
                self.offer.stopped = order is NodeOrder.STOP
            case NodeOrder.CPUS:
                try:
                    self.offer.cpus = vitals.offered_cpus(cpus, oversubscribe=self.settings.oversubscribe)
                except SettingsError as error:
                    return NodeSteered(False, str(error))
            case NodeOrder.HOURS:
                try:
                    self.set_window(read_hours(hours))
                except SettingsError as error:
                    return NodeSteered(False, str(error))
            case NodeOrder.RELEASE:
                return self._release()
        self.post(ev.OfferChanged(*self.offer.now()))
        return NodeSteered(True, _obeyed(order, self.offer.cpus, self.core.info.cpus, self.core.info.closed))

    def _release(self) -> NodeSteered:
        lease = self.core.lease
        if lease is None:
            return NodeSteered(False, "nobody uses this node")
        if lease.peer is not None:
            words = "the program that uses this node is connected; quit or stop if it shall not go on"
            return NodeSteered(False, words)
        self.post(ev.ReleaseAsked())
        left = self.core.lease is not None and not self.core.lease.is_idle
        return NodeSteered(True, "it is let go as soon as its jobs that run have ended" if left else "it is let go")

    def status(self) -> NodeStatus:
        """How the node is now."""
        seen = self.core.snapshot()
        return NodeStatus(
            info=msgspec.structs.replace(self.core.info, holder=seen.holder),
            cpus=self.offer.cpus,
            window="" if self.offer.window is None else _window_text(self.offer.window),
            waiting=seen.waiting,
            computations=tuple((name, state) for _, name, state in seen.computations),
            queued=seen.queued,
            given=seen.given,
            workers=seen.workers,
            unacknowledged=seen.unacknowledged + seen.unclaimed,
            done=seen.done,
            served=seen.served,
            avail=_avail(self.settings.prefix),
            now=time.time(),
        )

    def answer(self, message: AnyMessage, by: str) -> AnyMessage | None:
        """The answer to what an admin says over a link; None: an admin does not say that."""
        match message:
            case AskStatus():
                return StatusTold(self.status())
            case SteerNode():
                order = message.order
                steered = self.obey(order, message.cpus, message.hours)
                with_it = {NodeOrder.CPUS: f" {message.cpus}", NodeOrder.HOURS: f" {message.hours}"}.get(order, "")
                logger.warning("admin %s orders %s%s: %s", by, order.value, with_it, steered.sentence)
                return steered
        return None


def _avail(prefix: Path) -> AvailInfo | None:
    try:
        return vitals.sample(prefix)
    except OSError as error:
        logger.debug("the load cannot be measured: %s", error)
        return None


def offer_text(cpus: int, reason: str) -> str:
    """What is offered now, for people."""
    return f"{counted(cpus, 'CPU')} offered" if cpus else f"no CPU offered: {reason}"


def _obeyed(order: NodeOrder, cpus: int, now: int, reason: str) -> str:
    """What an order about the offer has changed: `cpus` is what the owner offers, `now` what is offered now."""
    if now or order not in {NodeOrder.CPUS, NodeOrder.START}:
        return offer_text(now, reason)
    done = "started" if order is NodeOrder.START else "noted"
    return f"{done}: it will offer {counted(cpus, 'CPU')}, now it offers none: {reason}"


def status_rows(status: NodeStatus) -> list[tuple[str, str]]:
    """How a node is: names and values, in the order in which people want them. Pure."""
    rows = [("CPUs", offer_text(status.info.cpus, status.info.closed))]
    if status.window:
        rows.append(("service", status.window))
    holder = status.info.holder
    if holder is None:
        rows.append(("used by", "nobody"))
    else:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
        who = f"{holder.user}@{holder.host} ({holder.program}, process {holder.pid})"
        rows.append(("used by", f"{who} since {since}, {_span(status.now - holder.since)}"))
        if holder.gone:
            rows.append(("", f"{holder.absence}; `release` frees the node when no job runs any more"))
    if status.waiting:
        rows.append(("in line", counted(status.waiting, "more program")))
    rows += [("computation", f"{name} ({state})") for name, state in status.computations]
    at_work = f"{status.given} at {counted(status.workers, 'worker')}, " if status.given else ""
    rows.append(("jobs here", f"{at_work}{status.queued} queued" if status.given or status.queued else "none"))
    not_fetched = f", {status.unacknowledged} of them not yet fetched" if status.unacknowledged else ""
    rows.append(("jobs done", f"{status.done}{not_fetched}"))
    rows.append(("programs", f"{status.served} served"))
    if (avail := status.avail) is not None:
        free = f"CPU {avail.cpu:.0f} %, memory {size(avail.memory)}, disk {size(avail.disk)}"
        rows.append(("free", free))
    return rows


def _window_text(window: ServiceWindow) -> str:
    parts = [f"from {clock_text(window.start)}", f"no new jobs from {clock_text(window.stop)}"]
    if window.end is not None:
        parts.append(f"jobs end at {clock_text(window.end)}")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} h" if hours else f"{minutes}:{seconds:02} min"
