"""An Ethernet switch in user space: it delays, repeats and reorders frames, where the kernel has no netem.

`tapswitch.py DELAY REPEATED LATE NAMESPACE=ADDRESS…` makes `eth0` in each network namespace: seconds each way, the
part of frames that arrive twice, and the part that arrive up to as much later again. Runs until it is ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import time
from itertools import count
from random import Random

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000


def plug(namespace: str, address: str) -> int:
    """A descriptor whose frames are those of a new eth0 in the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(port, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI))
    libc.setns(home, CLONE_NEWNET)
    os.close(home)
    os.close(there)
    for words in (f"addr add {address}/24 brd + dev eth0", "link set eth0 up"):
        subprocess.run(["ip", "-n", namespace, *words.split()], check=True)
    return port


def switch(ports: list[int], delay: float, repeated: float, late: float) -> None:
    """Forward frames for ever."""
    random, order = Random(1), count()
    places: dict[bytes, int] = {}
    waiting: list[tuple[float, int, int, bytes]] = []
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(ports, [], [], timeout)[0]:
            frame = os.read(port, 1 << 16)
            places[frame[6:12]] = port
            for _ in range(2 if random.random() < repeated else 1):
                extra = delay * random.random() if random.random() < late else 0.0
                heapq.heappush(waiting, (time.monotonic() + delay + extra, next(order), port, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, origin, frame = heapq.heappop(waiting)
            known = places.get(frame[:6])
            for port in [known] if known is not None else [port for port in ports if port != origin]:
                with contextlib.suppress(OSError):  # its queue is full or it is down: a switch drops
                    os.write(port, frame)


def main() -> None:
    delay, repeated, late = map(float, sys.argv[1:4])
    ports = [plug(*place.split("=")) for place in sys.argv[4:]]
    print("switching", flush=True)
    switch(ports, delay, repeated, late)


if __name__ == "__main__":
    main()
