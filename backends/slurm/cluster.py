#!/usr/bin/env python3
"""Start and stop a real SLURM cluster of several nodes on this one machine, for development and tests.

    eval "$(backends/slurm/cluster.py start /tmp/slurm)"     # start it, and use it in this shell
    sinfo
    backends/slurm/cluster.py stop /tmp/slurm

All that it is stands in one folder, so several run side by side. README.md tells the rest.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from string import Template

PACKAGES = "munge slurmctld slurmd slurm-client"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "squeue", "scancel")

#: With where Debian has the daemons, and not every root's shell looks.
_PATH = os.pathsep.join([*filter(None, [os.environ.get("PATH")]), "/usr/sbin"])

#: What can be chosen at the first start in a folder: the default, and what it is.
SETTINGS = {
    "nodes": (4, "nodes"),
    "cpus": (4, "cores that a node seems to have"),
    "memory": (4096, "MB that a node seems to have"),
    "gpus": (2, "GPUs that a node seems to have"),
    "kill_wait": (5, "seconds between TERM and KILL at the end of a job's time"),
    "port": (0, "first of the ports on loopback, one more than nodes; 0 finds some"),
}

#: States in which a node answers and takes work, or has it.
_UP = {"idle", "mixed", "allocated", "completing"}

#: A socket's path may have 107 characters, and the longest of SLURM's needs so many beneath its folder.
_LONGEST_PATH = 107 - 40


class ClusterError(Exception):
    """What stands in the way, and what to do about it."""


def obstacle() -> str | None:
    """Why no cluster can be started on this machine, and what to do about it; None if one can."""
    if os.geteuid() != 0:
        return "only root can start a cluster: its nodes run each job as the user who submitted it"
    if missing := [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]:
        return f"{', '.join(missing)} not installed; on Debian: apt-get install {PACKAGES}"
    host = _host()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        address = "nowhere"
    if address.startswith("127."):
        return None
    return (
        f"this host's name, {host}, leads to {address}, and there SLURM would listen; it must lead to loopback: "
        f"put 127.0.0.1 {host} before other lines of that name in /etc/hosts"
    )


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.configuration = self.folder / "slurm.conf"

    @property
    def variables(self) -> dict[str, str]:
        """What leads SLURM's programs to this cluster, and Open MPI from node to node though all are one host.

        Its shared memory has the host's name in its own, so that ranks of two nodes would write over each other's.
        """
        return {
            "SLURM_CONF": str(self.configuration),
            "OMPI_MCA_btl": "self,tcp",
            "OMPI_MCA_btl_tcp_if_include": "lo",
            "OMPI_MCA_oob_tcp_if_include": "lo",
        }

    @property
    def nodes(self) -> list[str]:
        lines = self.configuration.read_text().splitlines() if self.configuration.exists() else []
        return [line.split()[0].partition("=")[2] for line in lines if line.startswith("NodeName=n")]

    def start(self, within: float = 60.0, **settings: int) -> None:
        """Start what of it does not run, and wait `within` seconds at most until every node answers.

        Settings are those of SETTINGS; they hold from the first start in a folder on. Raises ClusterError.
        """
        if (reason := obstacle()) is not None:
            raise ClusterError(reason)
        if not self.configuration.exists():
            self._configure({name: default for name, (default, _) in SETTINGS.items()} | settings)
        elif settings:
            raise ClusterError(f"{self.folder} holds a cluster whose {', '.join(settings)} stay: take another folder")
        self._run_missing(within)
        self._wait_until_up(within)

    def stop(self, within: float = 15.0) -> None:
        """Cancel its jobs, then end its daemons; the folder stays. Nothing to do where none of them runs.

        Raises ClusterError if a job or a daemon outlives it.
        """
        if not self._is_running():
            return
        try:
            self._cancel_jobs(within)
        finally:
            # Nodes before what they report to, and munge, without which none of them speaks, last.
            self._end([*self.nodes, "slurmctld"], within)
            self._end(["munged"], within)

    def _is_running(self) -> bool:
        """Whether a daemon does, or what a killed one left: SLURM's processes all work in the folder of the logs."""
        return any(self._pid(name) for name, _ in self._daemons()) or any(
            _links_to(process / "cwd", self.folder / "log") for process in Path("/proc").glob("[0-9]*")
        )

    def _cancel_jobs(self, within: float) -> None:
        def cancelled() -> bool:
            self._run_missing(within)  # only daemons can end what jobs have running
            jobs = self._ask("squeue", "--noheader", "--format=%A")
            if jobs:
                self._ask("scancel", *jobs.split())
            return jobs == ""

        if not _until(cancelled, within):
            raise ClusterError(f"jobs not ended {within:g} s after scancel:\n{self._ask('squeue', '--long')}")

    def _configure(self, settings: dict[str, int]) -> None:
        if too_few := [name for name in ("nodes", "cpus", "memory") if settings[name] < 1]:
            raise ClusterError(f"{', '.join(too_few)} must be at least 1")
        if len(str(self.folder)) > _LONGEST_PATH or any(letter.isspace() for letter in str(self.folder)):
            raise ClusterError(f"{self.folder}: SLURM takes paths of up to {_LONGEST_PATH} characters, without blanks")
        nodes = [f"n{number}" for number in range(1, settings["nodes"] + 1)]
        for name in (".", "run", "log", "state", "spool", "gpus", *(f"tmp/{node}" for node in nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / name).chmod(0o1777 if name.startswith("tmp/") else 0o755)
        self._make_key()
        self._make_gpus(settings["gpus"])
        template = Template((Path(__file__).parent / "slurm.conf.in").read_text())
        port = settings["port"] or _free_ports(len(nodes) + 1)
        text = template.substitute(
            settings,
            folder=self.folder,
            host=_host(),
            port=port,
            memory_per_cpu=settings["memory"] // settings["cpus"],
            gres=f"Gres=gpu:{settings['gpus']}" if settings["gpus"] else "",
            nodes="\n".join(_node_line(node, number) for number, node in enumerate(nodes, port + 1)),
        )
        self.configuration.write_text(text)

    def _make_key(self) -> None:
        key = self.folder / "run" / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _make_gpus(self, count: int) -> None:
        """SLURM numbers and hands out what are character devices; a link to one will do."""
        folder = self.folder / "gpus"
        for number in range(count):
            (folder / str(number)).unlink(missing_ok=True)
            (folder / str(number)).symlink_to(os.devnull)
        (self.folder / "gres.conf").write_text(f"Name=gpu File={folder}/[0-{count - 1}]\n" if count else "")

    def _daemons(self) -> Iterator[tuple[str, list[str]]]:
        """Their names, which their pid files have, and command lines, in the order in which they are to start."""
        run, configuration = self.folder / "run", str(self.configuration)
        munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={run / name}" for option, name in munge.items()]
        # Forced: the folder may stand where only root may look, and a killed munged leaves its socket.
        yield "munged", ["munged", "--force", *options, f"--log-file={self.folder}/log/munged.log"]
        yield "slurmctld", ["slurmctld", "-f", configuration]
        for node in self.nodes:
            yield node, ["slurmd", "-N", node, "-f", configuration]

    def _run_missing(self, within: float) -> None:
        missing = dict(self._daemons())

        def all_run() -> bool:
            # Looked at again: one that was just killed is there for a moment still.
            for name in [name for name in missing if self._pid(name) is None]:
                self._run_daemon(name, missing.pop(name))
            return all(self._pid(name) for name, _ in self._daemons())

        # Some write their pid files, or fail, only in the background.
        if not _until(all_run, within):
            names = ", ".join(name for name, _ in self._daemons() if not self._pid(name))
            raise ClusterError(f"{names} did not start\n{self.log_tails()}")

    def _run_daemon(self, name: str, command: list[str]) -> None:
        """Each goes into the background by itself, once it has started."""
        output = self.folder / "log" / f"{name}.out"
        with output.open("wb") as file:
            environment = {**os.environ, "PATH": _PATH}
            code = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
            ).returncode
        if code:
            raise ClusterError(f"{shlex.join(command)} ended with exit code {code}\n{self.log_tails()}")

    def _pid(self, name: str) -> int | None:
        """Of that daemon, if it runs and is this cluster's: pid files outlive daemons, and pids are given again."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if f"{self.folder}/".encode() in command else None

    def _ask(self, *command: str) -> str | None:
        """What one of SLURM's programs prints; None where it fails, for it may be asked too early or too late."""
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=10)
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def _wait_until_up(self, within: float) -> None:
        def up() -> bool:
            lines = (self._ask("sinfo", "--noheader", "--Node", "--format=%N %T") or "").splitlines()
            states = dict(line.split() for line in lines)
            return set(states) == set(self.nodes) and set(states.values()) <= _UP

        if not _until(up, within):
            states = self._ask("sinfo", "--Node", "--long")
            raise ClusterError(f"not all nodes were up after {within:g} s\n{states}\n{self.log_tails()}")

    def _end(self, names: Sequence[str], within: float) -> None:
        def running() -> dict[str, int]:
            return {name: pid for name in names if (pid := self._pid(name)) is not None}

        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in running().values():
                os.kill(pid, number)
            if _until(lambda: not running(), within):
                return
        raise ClusterError(f"still there after SIGKILL: {running()}")

    def log_tails(self) -> str:
        """The last lines that each daemon has written."""
        files = [path for path in sorted((self.folder / "log").iterdir()) if path.stat().st_size]
        return "\n".join(f"== {path}\n{_last_lines(path)}" for path in files)


def _links_to(link: Path, target: Path) -> bool:
    try:
        return link.readlink() == target
    except OSError:  # gone meanwhile, or another user's
        return False


def _last_lines(path: Path, count: int = 8) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _node_line(name: str, port: int) -> str:
    return f"NodeName={name} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port}"


def _free_ports(count: int) -> int:
    """The first of so many that follow each other.

    They lie below those that the kernel gives to whoever connects somewhere: one of these may be taken at any moment.
    """
    for _ in range(1000):
        first = random.randrange(10_000, 30_000)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise ClusterError(f"found no {count} free ports in a row between 10000 and 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as SLURM does: a port just left is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _until(condition: Callable[[], bool], within: float) -> bool:
    """Whether it came true in time, looked at every 50 ms: neither SLURM nor the table of processes announces much."""
    deadline = time.monotonic() + within
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return true


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start what does not run yet; prints what `env` prints")
    for name, (default, text) in SETTINGS.items():
        start.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"{text} (default: {default})")
    start.add_argument("--within", type=float, default=60.0, metavar="S", help="seconds to wait for it (default: 60)")
    commands.add_parser("stop", help="cancel its jobs and end its daemons; the folder stays")
    commands.add_parser("env", help="print what makes the programs of a shell use it")
    for command in commands.choices.values():
        command.add_argument("folder", type=Path, metavar="DIR", help="where all of it stands, made if need be")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    options = _parse(arguments)
    cluster = Cluster(options.folder)
    try:
        if options.command == "start":
            given = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
            cluster.start(options.within, **given)
        if options.command == "stop":
            cluster.stop()
        else:
            print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in cluster.variables.items()))
    except ClusterError as error:
        sys.exit(f"cluster.py: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
