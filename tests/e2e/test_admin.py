"""`dispy admin` and a real node: orders over an admin link, and who may not give any."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click.testing
import pytest

import dispy
from dispy import cli
from dispy.errors import AuthenticationRejected
from dispy.model import ProcessId, Role
from dispy.secrets import find_admin_credentials, find_credentials
from dispy.wire.link import Link, LinkSettings, dial
from dispy.wire.messages import AnyMessage, AskLease, AskStatus


def admin(*words: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli.main, ["admin", *words])


def wait_for_job(path: str) -> int:
    import os
    import time

    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return 7


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "admin-secret"
    path.write_text("rule\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def node(dispynode: Callable[..., Any], secret_file: str, free_base_port: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DISPY_PORT", str(free_base_port))
    monkeypatch.setenv("DISPY_ADMIN_SECRET_FILE", secret_file)
    return dispynode("--cpus", "1", name="alpha")


def test_a_node_tells_how_it_is_and_obeys(node: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    gate = str(tmp_path / "gate")
    with dispy.JobCluster(wait_for_job, nodes=["127.0.0.1"]) as cluster:
        job = cluster.submit(gate)
        wait_until(Path(gate + ".begun").exists)
        shown = admin("127.0.0.1", "status")
        assert shown.exit_code == 0, shown.output
        assert "alpha" in shown.output
        assert "1 CPU offered" in shown.output
        assert "wait_for_job (ready)" in shown.output
        told = json.loads(admin("localhost", "--json", "status").output)
        assert told["status"]["given"] == 1
        assert told["status"]["info"]["holder"]["user"]
        assert admin("127.0.0.1", "release").exit_code == 1
        assert "its owner has stopped it" in admin("127.0.0.1", "stop").output
        assert json.loads(admin("127.0.0.1", "--json", "status").output)["status"]["info"]["cpus"] == 0
        assert admin("127.0.0.1", "start").output == "127.0.0.1: 1 CPU offered\n"
        refused = admin("127.0.0.1", "cpus", "99999")
        assert (refused.exit_code, "--oversubscribe" in refused.output) == (1, True)
        assert admin("127.0.0.1", "cpus", "1").exit_code == 0
        assert "HH:MM" in admin("127.0.0.1", "hours", "8").output
        start, stop = (f"{datetime.now() + timedelta(hours=hours):%H:%M}" for hours in (3, 6))
        begins = f"127.0.0.1: no CPU offered: its service window begins at {start}\n"
        assert admin("127.0.0.1", "hours", start, stop).output == begins
        assert f"from {start}, no new jobs from {stop}" in admin("127.0.0.1", "status").output
        assert admin("127.0.0.1", "hours", "always").output == "127.0.0.1: 1 CPU offered\n"
        Path(gate).touch()
        assert job() == 7
    cluster.shutdown()
    assert admin("127.0.0.1", "exit").exit_code == 0
    assert node.wait() == 0
    assert "orders exit" in node.output


def test_quit_ends_a_node_now_and_the_rest_is_told(node: Any, free_base_port: int) -> None:
    done = admin("127.0.0.1", "127.0.0.1:1", "quit")
    assert done.exit_code == 1
    assert "127.0.0.1: ending now" in done.output
    assert re.search(r"127.0.0.1:1: nothing listens at .*connection refused", done.output)
    assert node.wait() == 0


def test_whoever_has_another_secret_is_told_and_gives_no_orders(
    node: Any, secret_file: str, dispynode: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, free_base_port: int
) -> None:
    programs = find_credentials(create=False)
    wrong = admin("127.0.0.1", "--admin_secret", "wrong", "stop")
    assert wrong.exit_code == 1
    assert "has another admin secret" in wrong.output
    node.wait_for("another admin secret")
    monkeypatch.delenv("DISPY_ADMIN_SECRET_FILE")
    plain = dispynode("--cpus", "1", name="beta")
    port = re.search(r"127\.0\.0\.1:(\d+)", plain.wait_for("ready"))
    assert port is not None
    refused = admin(f"127.0.0.1:{port[1]}", "--admin-secret-file", secret_file, "stop")
    assert refused.exit_code == 1
    assert "start it with --admin_secret" in refused.output
    nameless = admin("127.0.0.1", "status")
    assert nameless.exit_code == 2
    assert "which admin secret?" in nameless.output

    owner = find_admin_credentials(secret_file=secret_file)
    assert owner is not None
    here = free_base_port + 1
    for credentials, role, words in (
        (programs, Role.ADMIN, "another admin secret"),
        (owner, Role.SCHEDULER, "another secret"),
    ):
        settings = LinkSettings(ProcessId("a" * 32), role, "thief", credentials)
        with pytest.raises(AuthenticationRejected, match=words):
            asyncio.run(_dial(here, settings, AskStatus()))
    settings = LinkSettings(ProcessId("a" * 32), Role.ADMIN, "owner", owner)
    assert "an admin does not send AskLease" in asyncio.run(
        _dial(here, settings, AskLease(b"t" * 32, dispy.model.Holder("u", "h", 1, "p")))
    )


async def _dial(port: int, settings: LinkSettings, message: AnyMessage) -> str:
    """Say one thing to a node; returns why it ended the link."""
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    class Handler:
        def link_opened(self, link: Link) -> None:
            link.send(message)

        def messages_arrived(self, link: Link, messages: list[tuple[AnyMessage, bytes | memoryview]]) -> None:
            lost.set_result(repr(messages))

        def link_suspected(self, link: Link) -> None: ...

        def link_recovered(self, link: Link) -> None: ...

        def link_lost(self, link: Link, cause: str, goodbye: bool) -> None:
            lost.set_result(cause)

    link = await dial("127.0.0.1", port, settings=settings, handler=Handler())
    why = await lost
    await link.wait_closed()
    return why


@pytest.mark.parametrize("words", [("status",), ("h", "dance"), ("h", "cpus"), ("h", "cpus", "x"), ("h", "--lead")])
def test_wrong_use_is_told(words: tuple[str, ...]) -> None:
    assert admin(*words, "--admin_secret", "x").exit_code == 2


def test_the_secret_of_programs_is_no_admin_secret(dispynode: Callable[..., Any]) -> None:
    node = dispynode("--secret", "word", "--admin_secret", "word", ready=False)
    assert node.wait() != 0
    assert "choose another one for --admin_secret" in node.output
