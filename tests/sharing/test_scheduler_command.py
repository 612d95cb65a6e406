"""The options of `dispyscheduler`, and what its owner types at its terminal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from dispy.certificates import make_ca, make_certificate
from dispy.model import Holder, Role
from dispy.scheduler.fairness import Policy
from dispy.sharing import cli
from dispy.sharing.console import Console
from dispy.sharing.settings import SharingSettings


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`settings_of(*arguments)`: how the command would run a scheduler; a usage error as (2, text)."""
    ran: list[SharingSettings] = []
    monkeypatch.setattr(cli, "run", lambda sharing, *, daemon: ran.append(sharing) or 0)
    monkeypatch.setattr(cli, "mask_secrets", lambda: None)
    monkeypatch.setattr(cli, "set_up_logging", lambda *, debug: None)
    monkeypatch.setattr(cli, "_log_alike", lambda: None)

    def settings(*arguments: str) -> Any:
        result = CliRunner().invoke(cli.command, arguments)
        return (result.exit_code, result.output) if result.exit_code else ran.pop()

    return settings


def test_without_options_it_is_fair_and_uses_every_node(settings_of: Any, environment: Path) -> None:
    sharing = settings_of()
    assert sharing.policy is Policy.FAIR
    assert sharing.use == ("*",)
    assert sharing.prefix == environment / ".local/state/dispy/scheduler"
    assert (sharing.pulse_interval, sharing.zombie_interval, sharing.ping_interval) == (1.0, 3600.0, None)
    assert sharing.nodes.key == sharing.clients.key
    assert sharing.admin is None
    assert (sharing.base_port, sharing.client_port) == (9700, 9702)


def test_every_option_has_its_effect(settings_of: Any, tmp_path: Path) -> None:
    sharing = settings_of(
        *("-n", "a,b:1", "--node", "10.0.*", "-i", "127.0.0.1", "--ext_host", "out", "-p", "20000"),
        *("--ipv4_udp_multicast", "--name", "pool", "--group", "g", "--node_secret", "n", "--cluster_secret", "c"),
        *("--admin_secret", "a", "--pulse_interval", "2", "--ping_interval", "5", "--zombie_interval", "2"),
        *("--dest_path_prefix", str(tmp_path), "--max_file_size", "2k", "--clean", "--early-cluster-scheduler"),
        *("--max-cpus-per-user", "3", "--max-jobs-per-user", "4", "--cooperative", "--cleanup_nodes"),
    )
    assert sharing.use == ("a", "b:1", "10.0.*")
    assert (sharing.hosts, sharing.ext_host, sharing.base_port) == (("127.0.0.1",), "out", 20000)
    assert sharing.multicast.instead
    assert (sharing.name, sharing.group, sharing.prefix) == ("pool", "g", tmp_path)
    assert len({sharing.nodes.key, sharing.clients.key, sharing.admin.key}) == 3
    assert (sharing.pulse_interval, sharing.ping_interval, sharing.zombie_interval) == (2.0, 5.0, 120.0)
    assert (sharing.max_file_size, sharing.policy) == (2048, Policy.EARLY_CLUSTER)
    assert (sharing.max_cpus_per_user, sharing.max_jobs_per_user) == (3, 4)
    assert sharing.clean
    assert sharing.cooperative
    assert sharing.cleanup_nodes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fair_cluster_scheduler", "--fifo_cluster_scheduler"), "exclude each other"),
        (("--cluster_secret", "x", "--admin_secret", "x"), "admin secret"),
        (("--pulse_interval", "0.01"), "0.1"),
        (("--max_file_size", "much"), "number of bytes"),
        (("--max_jobs_per_user", "-1"), "-1"),
        (("--httpd",), "the web monitor is not in this release"),
    ],
)
def test_what_cannot_be_is_refused_in_words(settings_of: Any, arguments: tuple[str, ...], says: str) -> None:
    code, output = settings_of(*arguments)
    assert code == 2
    assert says in output


def test_options_are_saved_without_secrets_and_read_again(settings_of: Any, tmp_path: Path) -> None:
    saved = tmp_path / "pool.ini"
    done = CliRunner().invoke(
        cli.command,
        [
            *("--node", "a,b", "--node_secret", "hidden", "--cluster_secret", "hidden", "--admin_secret", "hidden"),
            *("--clean", "--fifo_cluster_scheduler", "--zombie_interval", "3", "--save_config", str(saved)),
        ],
    )
    assert done.exit_code == 0
    assert "hidden" not in saved.read_text()
    sharing = settings_of("--config", str(saved), "--zombie_interval", "4")
    assert (sharing.use, sharing.policy, sharing.zombie_interval) == (("a", "b"), Policy.FIFO, 240.0)
    assert not sharing.clean
    saved.write_text("[DEFAULT]\ncolour = red\n")
    assert "no option of dispyscheduler" in settings_of("--config", str(saved))[1]


def test_a_certificate_of_another_kind_is_refused_with_the_command_for_the_right_one(
    settings_of: Any, tmp_path: Path
) -> None:
    make_ca(tmp_path)
    made = {role: make_certificate(tmp_path, role, "x") for role in (Role.NODE, Role.CLIENT, Role.SCHEDULER)}

    def options(side: str, role: Role) -> list[str]:
        files = made[role]
        certificate = (f"--{side}_certfile", str(files.certfile), f"--{side}_keyfile", str(files.keyfile))
        return [*certificate, f"--{side}_cafile", str(tmp_path / "ca.pem")]

    for side, role in (("cluster", Role.CLIENT), ("cluster", Role.NODE), ("node", Role.NODE)):
        code, output = settings_of(*options(side, role))
        assert code == 2
        assert f"was made for a {role}" in output
        assert "`dispy cert scheduler NAME`" in output
    for role in (Role.CLIENT, Role.SCHEDULER):
        settings_of(*options("cluster", Role.SCHEDULER), *options("node", role))


class Scheduler:
    """What the console needs of one."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.pending = 2

    def end(self, reason: str) -> None:
        self.did.append(reason)

    def end_when_idle(self) -> None:
        self.did.append("when idle")

    def status(self) -> Any:
        node = SimpleNamespace(name="n1", address="10.0.0.1", cpus=4, running=2, problem="", state="leased")
        claim = Holder("anna", "lab", 7, "p.py")
        cluster = SimpleNamespace(
            name="compute",
            owner="anna@lab",
            proved=True,
            claim=claim,
            state="open",
            waiting=5,
            running=2,
            done=1,
            attached=False,
        )
        return SimpleNamespace(nodes=[node], clusters=[cluster])


def test_words_at_the_terminal() -> None:
    scheduler, said = Scheduler(), []
    console = Console(scheduler, say=said.append)  # type: ignore[arg-type]
    for line in ("help", "exit", "QUIT", "exti", ""):
        console.obey(line)
    assert scheduler.did == ["when idle", "by its owner"]
    assert "quit" in said[0]
    assert "2 jobs now" in said[1]
    assert said[2].startswith("'exti' is no word")
    assert all(word in said[3] for word in ("n1", "10.0.0.1", "leased", "compute", "anna@lab", "away"))
