"""Memory that is used again: never while somebody looks at it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dispy.wire.slabs import SLAB_SIZE, SLABS, Slabs

SIZE = 1 << 20


def test_memory_is_used_again_when_no_view_of_it_is_left() -> None:
    slabs = Slabs()
    first = slabs.take(SIZE)
    assert len(first) == SIZE
    assert not first.readonly
    first[:5] = b"first"
    part = first[2:4]
    owner = first.obj
    del first
    second = slabs.take(SIZE)
    assert second.obj is not owner  # a part of it is still looked at
    assert part == b"rs"
    del part
    assert slabs.take(SIZE + 3).obj is owner
    assert len(slabs.take(SIZE + 3)) == SIZE + 3


def test_so_much_is_kept_and_no_more() -> None:
    slabs = Slabs()
    views = [slabs.take(SIZE) for _ in range(2 * SLABS)]
    assert len({id(view.obj) for view in views}) == 2 * SLABS
    kept = {id(view.obj) for view in views[SLABS:]}
    views.clear()
    assert {id(slabs.take(SIZE).obj) for _ in range(3 * SLABS)} == kept


def test_small_and_very_large_memory_is_its_own() -> None:
    slabs = Slabs()
    for size in (1, 1000, SLAB_SIZE + 1):
        view = slabs.take(size)
        assert len(view) == len(view.obj) == size


def test_threads_do_not_get_the_same() -> None:
    slabs = Slabs()

    def work(number: int) -> bool:
        for _ in range(300):
            view = slabs.take(SIZE)
            view[:1] = view[-1:] = bytes([number])
            if view[0] != number or view[-1] != number:
                return False
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(work, range(4)))
