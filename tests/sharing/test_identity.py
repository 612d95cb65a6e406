"""Who a client is, by what the kernel, its certificate or only itself says."""

from __future__ import annotations

import os
import pwd
import socket

import pytest

from dispy.model import Holder
from dispy.sharing.identity import Identity, identity_of, prove_by_uid, uid_of

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:25E6 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:25E6 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0100007F:A1B2 0100007F:25E6 01 00000000:00000000 00:00000000 00000000  1000        0 3 1 0 20 4 30 10 -1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr
   0: 00000000000000000000000001000000:A1B3 00000000000000000000000001000000:25E6 01 0:0 00:0 00000000  1001 0 4
   1: 0000000000000000FFFF00000100007F:A1B4 0000000000000000FFFF00000100007F:25E6 01 0:0 00:0 00000000  1002 0 5
"""


@pytest.mark.parametrize(
    ("table", "address", "port", "uid"),
    [
        (TCP, "127.0.0.1", 0xA1B2, 1000),
        (TCP, "127.0.0.1", 0xA1B3, None),
        (TCP, "127.0.0.2", 0xA1B2, None),
        (TCP6, "::1", 0xA1B3, 1001),
        (TCP6, "127.0.0.1", 0xA1B4, 1002),
        (TCP6, "fe80::1%eth0", 0xA1B3, None),
    ],
)
def test_the_owner_of_a_connection_is_who_owns_its_other_end(
    table: str, address: str, port: int, uid: int | None
) -> None:
    assert uid_of(table, address, port, 9702) == uid


def test_this_process_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            proof = prove_by_uid("127.0.0.1", client.getsockname()[1], port)
            nobody = prove_by_uid("127.0.0.1", client.getsockname()[1], port + 1)
    assert proof == f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
    assert nobody == ""


def test_who_only_says_to_be_somebody_is_counted_apart() -> None:
    holder = Holder("anna", "lab", 1, "python")
    said, proved = identity_of(holder, ""), identity_of(holder, "anna@lab")
    assert said.user == proved.user == "anna@lab"
    assert said.key != proved.key
    assert (said.proved, proved.proved) == (False, True)
    for each in (said, proved):
        assert Identity.of_key(each.key) == each


def test_names_are_shown_without_what_a_terminal_obeys() -> None:
    assert identity_of(Holder("\x1b[2J", "h\n", 1, ""), "").user == "?[2J@h?"
