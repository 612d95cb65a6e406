"""Numbers of things and of bytes, as people read them."""

from __future__ import annotations

import pytest

from dispy.words import counted, size


@pytest.mark.parametrize(("number", "words"), [(0, "no CPUs"), (1, "1 CPU"), (2, "2 CPUs")])
def test_one_thing_and_several(number: int, words: str) -> None:
    assert counted(number, "CPU") == words


def test_a_word_with_another_plural() -> None:
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (2_500, "2.5 kB"),
        (999_999, "1.0 MB"),
        (50 * 10**6, "50 MB"),
        (8 * 10**9, "8.0 GB"),
        (900 * 10**9, "900.0 GB"),
        (9 * 10**12, "9.0 TB"),
        (10**18, "1000000.0 TB"),
        (1 << 20, "1 MiB"),
        (512 << 20, "512 MiB"),
        (3 << 29, "1.5 GiB"),
        (4 << 30, "4.0 GiB"),
    ],
)
def test_sizes_have_the_units_in_which_they_were_given(count: int, words: str) -> None:
    assert size(count) == words


def test_two_sizes_of_one_sentence_have_the_same_units() -> None:
    assert size(61.2 * 2**20, like=60 << 20) == "61 MiB"
    assert size(61.2 * 10**6, like=60 * 10**6) == "61 MB"
    assert size(300 << 10, like=60 << 20) == "300 KiB"
