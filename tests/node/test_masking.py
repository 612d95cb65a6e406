"""Secrets on the command line of a node: by value, and what a real process shows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dispy.masking import masked_arguments


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("--admin_secret adm --name adm", "--admin_secret *** --name adm"),
        ("--admin-secret adm", "--admin-secret ***"),
        ("--admin_secret=adm", "--admin_secret=***"),
        ("--admin-secret=a=b", "--admin-secret=***"),
        ("--secret s -s --secret", "--secret * -s ********"),
        ("-s --name --name x", "-s ****** --name x"),
        ("-shidden -dshidden -ds hidden", "-s****** -ds****** -ds ******"),
        ("--secret= x", "--secret= x"),
        ("--secret-file s --admin-secret-file s --service_start 7:00", None),
        ("-d -c 2 --tag s", None),
        ("--secret", None),
    ],
)
def test_only_the_secret_is_hidden(typed: str, shown: str | None) -> None:
    arguments = typed.encode().split(b" ")
    assert b" ".join(masked_arguments(arguments)).decode() == (shown or typed)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing can be overwritten")
def test_a_process_hides_its_secret() -> None:
    code = "from dispy.masking import mask_secrets as m; m(); print(open('/proc/self/cmdline').read())"
    words = ["--name", "e", "-s", "e", "--admin_secret", "ö=x"]
    run = subprocess.run([sys.executable, "-s", "-c", code, *words], capture_output=True, text=True, check=True)
    assert run.stdout.strip("\0\n").split("\0") == [
        *(sys.executable, "-s", "-c", code, "--name", "e", "-s", "*", "--admin_secret", "****"),
    ]
