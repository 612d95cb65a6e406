"""Who is told of whom when nodes fetch the same large blob, by value."""

from __future__ import annotations

from itertools import count

from dispy.model import BlobPlace, BlobRef, ProcessId
from dispy.scheduler.places import Place
from dispy.scheduler.swarms import ALL_LIMIT, Swarms
from dispy.wire.messages import BlobShared

REF = BlobRef(b"n" * 32, 100 << 20)


def node(number: int) -> ProcessId:
    return ProcessId(f"node{number}")


def places_for(node: ProcessId, other: ProcessId) -> tuple[Place, ...]:
    return ((f"{node} seen by {other}", 1),)


def swarms(offered: bool = True) -> Swarms:
    numbers = count(1)
    return Swarms(lambda: b"ticket%d" % next(numbers), lambda name: offered)


def told(table: Swarms) -> dict[ProcessId, BlobShared]:
    news = table.news(places_for)
    assert len(dict(news)) == len(news)
    return dict(news)


def test_one_node_is_told_nothing_and_two_are_told_of_each_other() -> None:
    table = swarms()
    table.asked(node(1), REF)
    assert told(table) == {}
    table.asked(node(2), REF)
    first, second = (BlobPlace(node(each), ((f"node{each} seen by node{3 - each}", 1),)) for each in (1, 2))
    assert told(table) == {
        node(1): BlobShared(REF, b"ticket1", 0, 2, [second]),
        node(2): BlobShared(REF, b"ticket1", 1, 2, [first]),
    }
    assert told(table) == {}


def test_who_has_it_gives_and_is_told_the_ticket_once() -> None:
    table = swarms()
    table.asked(node(1), REF)
    table.fetched(node(1), REF.name)
    assert told(table) == {}
    table.asked(node(2), REF)
    news = told(table)
    assert news[node(1)] == BlobShared(REF, b"ticket1", 1, 1, [])
    assert (news[node(2)].share, news[node(2)].shares) == (0, 1)
    assert [place.process for place in news[node(2)].places] == [node(1)]
    table.asked(node(3), REF)
    assert set(told(table)) == {node(2), node(3)}


def test_the_end_of_one_fetch_disturbs_nobody_and_a_lost_node_changes_the_shares() -> None:
    table = swarms()
    for number in range(4):
        table.asked(node(number), REF)
    assert {news.shares for news in told(table).values()} == {4}
    table.fetched(node(0), REF.name)
    assert told(table) == {}
    table.gone(node(1))
    news = told(table)
    assert {each: (one.share, one.shares) for each, one in news.items()} == {node(2): (0, 2), node(3): (1, 2)}
    assert {place.process for place in news[node(2)].places} == {node(0), node(3)}
    table.gone(node(0))
    assert told(table) == {}


def test_two_blobs_have_two_tickets_and_what_nobody_needs_is_forgotten() -> None:
    other = BlobRef(b"o" * 32, 100 << 20)
    table = swarms(offered=False)
    for number in range(2):
        table.asked(node(number), REF)
        table.asked(node(number), other)
    assert {(news.blob, news.ticket) for _, news in table.news(places_for)} == {
        (REF, b"ticket1"),
        (other, b"ticket2"),
    }
    for number in range(2):
        table.fetched(node(number), REF.name)
    table.asked(node(0), BlobRef(b"p" * 32, 100 << 20))
    table.asked(node(2), REF)
    assert told(table) == {}  # nobody is known to have it any more


def test_of_very_many_nodes_each_is_told_of_few_and_all_are_connected() -> None:
    table = swarms()
    nodes = [node(number) for number in range(300)]
    for each in nodes:
        table.asked(each, REF)
    news = told(table)
    around = {each: {place.process for place in one.places} for each, one in news.items()}
    assert max(map(len, around.values())) <= 2 * len(nodes).bit_length()
    assert len(around[nodes[0]]) > ALL_LIMIT // 2
    reached, steps = {nodes[0]}, 0
    while len(reached) < len(nodes):
        reached |= {other for each in reached for other in around[each]}
        steps += 1
    assert steps <= len(nodes).bit_length()
