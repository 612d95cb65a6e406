"""Service windows by value: over midnight, and on days when clocks change."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from dispy.errors import SettingsError
from dispy.node.window import Phase, ServiceWindow, read_hours, service_window

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = ServiceWindow(17 * 60, 6 * 60 + 30, 7 * 60)
DAY = ServiceWindow(8 * 60, 18 * 60)


def at(text: str, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("time", "phase"),
    [
        ("16:59", Phase.CLOSED),
        ("17:00", Phase.OPEN),
        ("23:59", Phase.OPEN),
        ("00:00", Phase.OPEN),
        ("06:29", Phase.OPEN),
        ("06:30", Phase.STOPPED),
        ("06:59", Phase.STOPPED),
        ("07:00", Phase.CLOSED),
        ("12:00", Phase.CLOSED),
    ],
)
def test_window_over_midnight(time: str, phase: Phase) -> None:
    assert NIGHT.phase(datetime.fromisoformat(f"2024-05-01T{time}")) is phase


def test_without_an_end_jobs_may_take_their_time() -> None:
    for time, phase in (("07:59", Phase.STOPPED), ("08:00", Phase.OPEN), ("18:00", Phase.STOPPED)):
        assert DAY.phase(datetime.fromisoformat(f"2024-05-01T{time}")) is phase


def test_without_a_stop_jobs_start_until_the_end() -> None:
    window = service_window("22:00", None, "06:00")
    assert window is not None
    assert window.phase(datetime.fromisoformat("2024-05-01T05:59")) is Phase.OPEN
    assert window.phase(datetime.fromisoformat("2024-05-01T06:00")) is Phase.CLOSED


@pytest.mark.parametrize(
    ("now", "change"),
    [
        ("2024-05-01T16:59:59.5", "2024-05-01T17:00"),
        ("2024-05-01T17:00", "2024-05-02T06:30"),
        ("2024-05-02T06:30:10", "2024-05-02T07:00"),
        ("2024-05-02T07:00", "2024-05-02T17:00"),
    ],
)
def test_next_change(now: str, change: str) -> None:
    assert NIGHT.next_change(at(now), BERLIN) == at(change)


def test_the_night_in_which_an_hour_is_skipped() -> None:
    window = ServiceWindow(60, 150, 150)  # 01:00 to 02:30, which does not exist on that day
    begin = at("2024-03-31T01:00")
    end = window.next_change(begin, BERLIN)
    assert end - begin == 3600, "02:30 would be after the change: at 03:00 the window is over"
    assert datetime.fromtimestamp(end, BERLIN).hour == 3
    assert NIGHT.next_change(at("2024-03-30T17:00"), BERLIN) == at("2024-03-31T06:30")


def test_the_night_with_an_hour_twice() -> None:
    window = ServiceWindow(150, 240, 240)  # 02:30 to 04:00
    assert window.next_change(at("2024-10-27T02:00"), BERLIN) == at("2024-10-27T02:30")
    # 02:59 in summer time is followed by 02:00 in winter time, which is before the window again
    assert window.next_change(at("2024-10-27T02:30"), BERLIN) == at("2024-10-27T02:00", fold=1)
    assert window.next_change(at("2024-10-27T02:30", fold=1), BERLIN) == at("2024-10-27T04:00")


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (("17:00", None, None), "needs --service_start and"),
        ((None, "07:00", None), "needs --service_start and"),
        (("7", "08:00", None), "HH:MM"),
        (("24:00", "08:00", None), "HH:MM"),
        (("08:00", "08:00", None), "has no time in it"),
        (("17:00", "07:00", "06:00"), "comes before"),
    ],
)
def test_wrong_windows_are_told(times: tuple[str | None, str | None, str | None], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        service_window(*times)


def test_hours_in_words() -> None:
    assert read_hours("17:00 06:30 07:00") == NIGHT
    assert read_hours("17:00  6:30") == ServiceWindow(17 * 60, 6 * 60 + 30)
    assert read_hours("always") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "say START STOP"),
        ("17:00", "say START STOP"),
        ("17:00 07:00 08:00 09:00", "say START STOP"),
        ("17:00 never", "STOP 'never': give a time of day"),
        ("17:00 07:00 06:00", "END 06:00 comes before STOP 07:00, seen from START 17:00"),
    ],
)
def test_wrong_hours_are_told(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_hours(text)


def test_no_window_without_options() -> None:
    assert service_window(None, None, None) is None
    assert service_window("17:00", "06:30", "07:00") == NIGHT
