"""What clusters accept and refuses, and the numbers of `dispy.config`. None is made here."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dispy
from dispy import JobCluster, config, settings
from dispy.errors import SettingsError
from dispy.parameters import OLD_NAMES, OLD_OPTIONS, directory, fitting, option_of_today, renamed
from dispy.sharedcluster import scheduler_place

NAMES = list(inspect.signature(JobCluster).parameters)
ORDER = (  # noqa: SIM905 - a list would be a column
    "computation nodes depends job_status cluster_status host dispy_port ext_host ip_addr ext_ip_addr "
    "ipv4_udp_multicast dest_path loglevel callback setup cleanup ping_interval pulse_interval poll_interval "
    "reentrant secret keyfile certfile recover_file"
).split()

SHARED_IN_ORDER = (  # noqa: SIM905
    "computation nodes depends job_status cluster_status host dispy_port client_port scheduler_host ext_host ip_addr "
    "ext_ip_addr loglevel callback setup cleanup dest_path poll_interval reentrant exclusive secret keyfile certfile "
    "recover_file"
).split()


@pytest.fixture
def defaults() -> Iterator[None]:
    """All settings of `dispy.config` are back to their defaults afterwards."""
    yield
    for name in config._DEFAULTS:
        delattr(config, name)


def nothing() -> None: ...


def test_parameters_are_in_the_order_of_the_original() -> None:
    assert NAMES[: len(ORDER)] == ORDER


@pytest.mark.parametrize(("old", "new"), [*OLD_NAMES.items(), ("node_port", "dispy_port")])
def test_an_old_name_is_accepted_with_one_warning(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new}") as caught:
        values = renamed({new: None}, {old: 9801}, NAMES)
    assert values[new] == (9800 if old == "node_port" else 9801)
    assert len(caught) == 1


def test_old_and_new_name_together_are_refused() -> None:
    with pytest.raises(SettingsError, match="callback is the old name of job_status: give one"):
        JobCluster(nothing, job_status=print, callback=print)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"nods": None}, "no parameter 'nods'; did you mean nodes?"),
        ({"pulse_intervall": 1}, "did you mean pulse_interval?"),
        ({"zzzzzz": 1}, "no parameter 'zzzzzz'$"),
        ({"ping_interval": 0.5}, "ping_interval must be a number of seconds from 1 to 1000"),
        ({"pulse_interval": 0.05}, "pulse_interval must be a number of seconds from 0.1 to 1000"),
        ({"poll_interval": 4}, "poll_interval must be a number of seconds from 5 to 1000"),
        ({"poll_interval": 1001}, "poll_interval must be a number of seconds from 5 to 1000"),
        ({"poll_interval": "often"}, "poll_interval must be a number of seconds from 5 to 1000, not 'often'"),
        ({"dispy_port": 70000}, "from 1 to 65533"),
        ({"reentrant": 1}, "reentrant must be True or False"),
        ({"job_status": 3}, "job_status must be something that can be called"),
        ({"job_status": lambda: None}, r"job_status is called with \(job\)"),
        ({"cluster_status": lambda job: None}, r"cluster_status is called with \(status, node, job\)"),
    ],
)
def test_what_cannot_be_used_is_named(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        JobCluster(nothing, **parameters)


class Listener:
    def heard(self, job: Any) -> None: ...

    def __call__(self, status: int, node: Any, job: Any) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        Listener().heard,
        lambda job: None,
        lambda *args: None,
        lambda job, extra=1: None,
        functools.partial(lambda first, job: None, 1),
        print,
        [].append,
    ],
)
def test_whatever_can_be_called_fits(function: Callable[..., Any]) -> None:
    assert fitting("job_status", function, "job") is function


def test_objects_that_can_be_called_fit() -> None:
    listener = Listener()
    assert fitting("cluster_status", listener, "status", "node", "job") is listener


@pytest.mark.usefixtures("defaults")
def test_ports_follow_the_base_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (config.DispyPort, config.ClientPort, config.NodePort, config.SharedSchedulerPort) == (
        9700,
        9700,
        9701,
        9702,
    )
    config.DispyPort = 9800
    assert (config.ClientPort, config.NodePort) == (9800, 9801)
    del config.DispyPort
    config.NodePort = 51348
    assert (config.DispyPort, config.ClientPort) == (51347, 51347)
    del config.NodePort
    monkeypatch.setenv("DISPY_PORT", "9900")
    assert config.NodePort == 9901


@pytest.mark.usefixtures("defaults")
def test_settings_are_checked_when_they_are_set() -> None:
    assert (config.MsgTimeout, config.MaxFileSize) == (10.0, 0)
    for name, value in {"DispyPort": 0, "MsgTimeout": -1, "MaxFileSize": "big", "Java": 3}.items():
        with pytest.raises(SettingsError, match=name):
            setattr(config, name, value)
    with pytest.raises(SettingsError, match="did you mean MaxFileSize"):
        config.MaxFileSise = 3  # type: ignore[attr-defined]
    config.DispyPort = 9800
    with pytest.raises(SettingsError, match="set one of the two"):
        config.NodePort = 9900
    with pytest.raises(AttributeError):
        config.Nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.usefixtures("defaults")
def test_multicast_groups_are_taken_from_variables_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = settings.Multicast(False, "239.255.61.59", "ff05::b409:3171:9705:5134:6159")
    assert settings.multicast() == usual
    monkeypatch.setenv("DISPY_IPV4_MULTICAST_GROUP", "239.1.2.3")
    monkeypatch.setenv("DISPY_IPV6_MULTICAST_GROUP", "ff05::1:2:3")
    assert settings.multicast(instead=True) == settings.Multicast(True, "239.1.2.3", "ff05::1:2:3")
    assert (config.IPv4MulticastGroup, config.IPv6MulticastGroup) == ("239.1.2.3", "ff05::1:2:3")
    config.IPv4MulticastGroup, config.IPv6MulticastGroup = "239.4.5.6", "ff05::4"
    assert _of_a_cluster(monkeypatch).multicast == settings.Multicast(False, "239.4.5.6", "ff05::4")
    for name, value in {"IPv4MulticastGroup": "10.0.0.1", "IPv6MulticastGroup": "239.1.2.3"}.items():
        with pytest.raises(SettingsError, match=f"{name} must be an IPv{name[3]} multicast address, as "):
            setattr(config, name, value)
    monkeypatch.setenv("DISPY_IPV4_MULTICAST_GROUP", "everybody")
    with pytest.raises(SettingsError, match="DISPY_IPV4_MULTICAST_GROUP must be"):
        settings.multicast()


def _of_a_cluster(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> Any:
    """The settings of the scheduler that a cluster with these parameters asks for."""
    asked: list[Any] = []

    def refuse(wanted: Any, _make: Any) -> None:
        asked.append(wanted)
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr("dispy.cluster.service_for", refuse)
        with pytest.raises(InterruptedError):
            JobCluster(nothing, secret="some words for this test", **parameters)
    return asked[0]


def test_where_a_cluster_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _of_a_cluster(
        monkeypatch,
        host=["10.0.0.1", "10.0.1.1"],
        ext_host="outside.example",
        dispy_port=9900,
        ipv4_udp_multicast=True,
        pulse_interval=3,
        group="lab",
    )
    assert (said.interfaces, said.ext_host) == (("10.0.0.1", "10.0.1.1"), "outside.example")
    assert (said.base_port, said.client_port, said.multicast.instead) == (9900, 9900, True)
    assert (said.pulse_interval, said.group) == (3, "lab")


@pytest.mark.usefixtures("defaults")
def test_ports_of_the_settings_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    config.NodePort = 9901
    said = _of_a_cluster(monkeypatch)
    assert (said.base_port, said.client_port) == (9900, 9900)
    config.ClientPort = 9950
    assert _of_a_cluster(monkeypatch).client_port == 9950
    assert _of_a_cluster(monkeypatch, dispy_port=9800).client_port == 9800


def test_the_level_of_the_logger_is_that_of_the_last_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dispy.logger.level
    try:
        for level in (dispy.logger.DEBUG, dispy.logger.CRITICAL):  # type: ignore[attr-defined]
            _of_a_cluster(monkeypatch, loglevel=level)
            assert dispy.logger.level == level
        monkeypatch.setenv("DISPY_LOGLEVEL", "error")
        _of_a_cluster(monkeypatch)
        assert dispy.logger.level == dispy.logger.ERROR  # type: ignore[attr-defined]
    finally:
        dispy.logger.setLevel(before)


@pytest.mark.usefixtures("defaults")
def test_a_file_that_is_too_large_does_not_travel(tmp_path: Any) -> None:
    config.MaxFileSize = 10
    data = tmp_path / "data"
    data.write_bytes(b"x" * 11)
    with pytest.raises(dispy.DispyError, match="MaxFileSize allows 10"):
        JobCluster(nothing, nodes=["127.0.0.1"], depends=[str(data)], secret="some words for this test")


def test_names_that_the_original_has() -> None:
    assert dispy.__version__.count(".") == 2
    assert dispy.config is config
    assert dispy.DispyNodeAvailInfo(1.0, 2, 3, 4.0).swap == 4.0
    with pytest.raises(ImportError, match="web monitor"):
        dispy.httpd  # noqa: B018
    with pytest.raises(ImportError, match="web monitor"):
        importlib.import_module("dispy.httpd")


def test_a_shared_cluster_takes_what_that_of_the_original_takes() -> None:
    names = list(inspect.signature(dispy.SharedJobCluster).parameters)
    assert names[: len(SHARED_IN_ORDER)] == SHARED_IN_ORDER
    own = {"scheduler_host", "client_port", "exclusive"}
    of_networks = {"ipv4_udp_multicast", "ping_interval", "pulse_interval"}
    assert set(names) - own == set(inspect.signature(JobCluster).parameters) - of_networks


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"exclusive": 1}, "exclusive must be True or False, not 1"),
        (
            {"scheduler_host": "here:port"},
            "scheduler_host 'here:port': give HOST or HOST:PORT; a port is a number from 1 to 65535, not 'port'",
        ),
        ({"scheduler_host": 5}, "scheduler_host must be a string, not 5"),
        ({"nodes": "local"}, "nodes='local' starts a node for one program: that is for JobCluster"),
        ({"ping_interval": 2}, "that is for the scheduler to know (dispyscheduler --ping_interval)"),
    ],
)
def test_what_a_shared_cluster_cannot_use_is_said(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        dispy.SharedJobCluster(nothing, secret="some words for this test", **wrong)


def test_where_a_shared_scheduler_is() -> None:
    assert scheduler_place(None, 9700) == ("127.0.0.1", 9702)
    assert scheduler_place("pool", 9800) == ("pool", 9802)
    assert scheduler_place("pool:77", 9700) == ("pool", 77)
    assert scheduler_place("fd00::1", 9700) == ("fd00::1", 9702)
    assert scheduler_place("[fd00::1]:77", 9700) == ("fd00::1", 77)
    for wrong in ("pool:0", "pool:65536", "pool:x", ":77", "pool:\u0663"):
        with pytest.raises(SettingsError, match=r"scheduler_host .*: give HOST or HOST:PORT"):
            scheduler_place(wrong, 9700)


def test_options_of_earlier_versions_are_accepted_and_a_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in OLD_OPTIONS.items():
        assert option_of_today(old) == new
        assert capsys.readouterr().err == f"the option --{old} is called --{new} now\n"
    assert option_of_today("host") == "host"


@pytest.mark.parametrize("name", ["group", "dest_path", "ext_host"])
def test_text_that_no_message_can_hold_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name}='na\\udcefve' cannot be sent: it is not Unicode"):
        JobCluster(len, **{name: b"na\xefve".decode(errors="surrogateescape")}, nodes="127.0.0.1")


def test_dest_path_is_below_the_directory_of_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert directory("dest_path", None) == ""
    assert directory("dest_path", "mine//./here/") == "mine/here"
    assert capsys.readouterr().err == ""
    assert directory("dest_path", "/tmp/mine") == "tmp/mine"
    assert "nodes keep it below their own directory, as 'tmp/mine'" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/"])
def test_a_dest_path_that_leads_outside_is_refused(path: str) -> None:
    with pytest.raises(SettingsError, match="dest_path must be a relative path"):
        directory("dest_path", path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_port_and_the_node_port_that_belongs_to_it_are_accepted() -> None:
    assert renamed({"dispy_port": None}, {"port": 9800, "node_port": 9801}, [])["dispy_port"] == 9800
    assert renamed({"dispy_port": None}, {"node_port": 9801, "port": 9800}, [])["dispy_port"] == 9800
    assert renamed({"dispy_port": 9800}, {"node_port": 9801}, [])["dispy_port"] == 9800


@pytest.mark.parametrize(
    ("given", "old", "words"),
    [
        (None, {"port": 9800, "node_port": 9800}, "port and node_port do not fit together"),
        (None, {"node_port": 9800, "port": 9800}, "node_port and port do not fit together"),
        (9801, {"node_port": 9801}, "dispy_port and node_port do not fit together"),
        (9801, {"port": 9800}, "port is the old name of dispy_port: give one of them, not both"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ports_that_do_not_fit_together_are_named(given: int | None, old: dict[str, int], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        renamed({"dispy_port": given}, old, [])
