"""Who gets what of nodes that three users share: a real dispyscheduler, three nodes with 8 CPUs together, all of it on
this machine.

The jobs of the users sleep for 10 ms, 100 ms and 0.5 s, and each user has more of them than can run. What counts is the
share of slot-seconds that a user has had in any 10 s. Users are told apart by certificates that are made for this.

    python benchmarks/fairness.py                 # half a minute
    python benchmarks/fairness.py --seconds 60
    python benchmarks/fairness.py --policy fifo   # or fair_cluster, early_cluster
    python benchmarks/fairness.py --json          # figures for a program
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dispy.certificates import CertificateFiles, make_ca, make_certificate

CPUS = (3, 3, 2)
USERS = {"anna": 0.01, "bert": 0.1, "carl": 0.5}
WINDOW = 10.0
PROGRAM = """
import json, sys, time
import dispy
def rest(seconds):
    import time
    time.sleep(seconds)
place, cert, key, ca, seconds, jobs, until = sys.argv[1:]
cluster = dispy.SharedJobCluster(rest, scheduler_host=place, certfile=cert, keyfile=key, cafile=ca, recover_file=False)
submitted = [cluster.submit(float(seconds)) for _ in range(int(jobs))]
print("ready", flush=True)
end = float(sys.stdin.readline()) + float(until)
time.sleep(max(0.0, end - time.time()))
spans = [(job.start_time, job.end_time) for job in submitted if job.status == dispy.DispyJob.Finished]
print(json.dumps(spans), flush=True)
cluster.close(terminate=True)
"""


def free_ports() -> int:
    """A base port of which the two above it are free as well."""
    while True:
        base = 20000 + secrets.randbelow(10000)
        sockets = []
        try:
            sockets.extend(socket.create_server(("127.0.0.1", port)) for port in range(base, base + 3))
            return base
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()


class Scene:
    """The processes."""

    def __init__(self, folder: Path, policy: str) -> None:
        self.folder, self.base = folder, free_ports()
        self.processes: list[subprocess.Popen[str]] = []
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("DISPY_")} | {
            "DISPY_INTERFACES": "lo",
            "DISPY_SECRET": secrets.token_hex(16),
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        make_ca(folder)
        mine = make_certificate(folder, "scheduler", "pool")
        self.users = {user: make_certificate(folder, "client", user) for user in USERS}
        options = [f"--cluster_certfile={mine.certfile}", f"--cluster_keyfile={mine.keyfile}"]
        options += [f"--cluster_cafile={folder / 'ca.pem'}", f"--port={self.base}", "--host=127.0.0.1"]
        options += [] if policy == "fair" else [f"--{policy}{'_cluster' if policy == 'fifo' else ''}_scheduler"]
        nodes = []
        for number, cpus in enumerate(CPUS):
            port = free_ports()
            nodes.append(f"--node=127.0.0.1:{port + 1}")
            self.start(
                "dispy.node.cli",
                *(f"--dispy_port={port}", f"--cpus={cpus}", "--oversubscribe", f"--name=n{number}", "--host=127.0.0.1"),
                f"--dest_path_prefix={folder / f'n{number}'}",
            )
        self.start("dispy.sharing.cli", *options, *nodes, f"--dest_path_prefix={folder / 'scheduler'}")

    def start(self, module: str, *options: str) -> None:
        """A daemon; returns when it can be used."""
        log = self.folder / f"{len(self.processes)}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *options, "--daemon"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
                text=True,
            )
        self.processes.append(process)
        while "is ready" not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(f"{module} did not start:\n{log.read_text()}")
            time.sleep(0.05)

    def program(self, user: str, files: CertificateFiles, seconds: float) -> subprocess.Popen[str]:
        """The program of a user, which has submitted its jobs when it says so."""
        jobs = int(1.5 * sum(CPUS) * seconds / USERS[user])
        arguments = [f"127.0.0.1:{self.base + 2}", str(files.certfile), str(files.keyfile), str(self.folder / "ca.pem")]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments, str(USERS[user]), str(jobs), str(seconds)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def end(self) -> None:
        """Nothing is left."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def had(spans: list[tuple[float, float]], start: float, end: float) -> float:
    """Slot-seconds of a span of time."""
    return sum(max(0.0, min(end, until) - max(start, since)) for since, until in spans)


def measure(folder: Path, policy: str, seconds: float) -> list[dict[str, float]]:
    """The slot-seconds of each user in each window."""
    scene = Scene(folder, policy)
    try:
        programs = {user: scene.program(user, files, seconds) for user, files in scene.users.items()}
        for user, program in programs.items():
            assert program.stdout is not None
            if program.stdout.readline().strip() != "ready":
                raise SystemExit(f"the program of {user} did not start")
        began = time.time() + 1.0
        for program in programs.values():
            assert program.stdin is not None
            program.stdin.write(f"{began}\n")
            program.stdin.flush()
        spans = {}
        for user, program in programs.items():
            assert program.stdout is not None
            spans[user] = json.loads(program.stdout.readline())
            program.wait()
    finally:
        scene.end()
    windows = []
    start = 0.0
    # a job that ran when the programs looked is not among theirs
    while start + WINDOW <= seconds - 2 * max(USERS.values()):
        first = began + start
        windows.append({"start": start} | {user: had(spans[user], first, first + WINDOW) for user in USERS})
        start += 1.0
    return windows


def main() -> None:
    """Print each window, and the worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=26.0)
    parser.add_argument("--policy", choices=["fair", "fair_cluster", "early_cluster", "fifo"], default="fair")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        windows = measure(Path(folder), args.policy, args.seconds)
    worst = 0.0
    for window in windows:
        together = sum(window[user] for user in USERS)
        shares = {user: len(USERS) * window[user] / together - 1 for user in USERS}
        worst = max(worst, *(abs(share) for share in shares.values()))
        if not args.json:
            text = ", ".join(f"{user} {window[user]:5.1f} ({100 * shares[user]:+5.1f} %)" for user in USERS)
            busy = together / WINDOW / sum(CPUS)
            print(
                f"{window['start']:3.0f} s to {window['start'] + WINDOW:3.0f} s: {text}; CPUs busy {100 * busy:.0f} %"
            )
    if args.json:
        print(json.dumps({"policy": args.policy, "window": WINDOW, "windows": windows, "farthest_from_even": worst}))
    else:
        print(f"slot-seconds in any {WINDOW:.0f} s are within {100 * worst:.1f} % of even shares")


if __name__ == "__main__":
    main()
