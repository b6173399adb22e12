"""Bringing the cluster up, restarting a part of it, and ending exactly what was started."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.slurm.cluster import processes
from tests.slurm.cluster.errors import ClusterError, with_log
from tests.slurm.cluster.packages import program, require_packages
from tests.slurm.cluster.processes import Process
from tests.slurm.cluster.settings import ACCOUNT, Layout, Ports, free_ports, mariadb_options, write

FOLDER = Path(__file__).parents[3] / "build" / "slurm"
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")  # each needs those before it
_DAEMON_OF = "MECHSTUDY_SLURM_DAEMON_OF"  # in the environment of what is started, should the record of it be lost
_READY = 60.0  # seconds a daemon may take until it answers
_CALL = 30.0  # and a client until it ends
_DRAIN = 20.0  # and cancelled jobs until they are gone


@dataclass
class _State:
    """What runs, as it is written down after every start."""

    ports: Ports
    processes: dict[str, Process] = field(default_factory=dict)


class Cluster:
    """A cluster in a folder. Every method holds the folder's lock, so that two commands are one after the other."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.layout = Layout(folder.resolve())

    # ---------------------------------------------------------------- commands

    def up(self) -> bool:
        """Brings it up, from nothing. False where it was up already.

        Raises:
            Unavailable: this machine cannot have one.
            ClusterError: a daemon does not start; what was started is ended again.
        """
        require_packages()
        with self._locked():
            if self._is_up():
                return False
            self._end()
            self._clear()
            state = _State(free_ports())
            write(self.layout, state.ports)
            try:
                self._start_all(state)
            except BaseException:
                self._end()
                raise
        return True

    def down(self) -> bool:
        """Ends its jobs and its daemons; configuration and logs stay. False where nothing of it ran."""
        if not self.layout.slurm_conf.is_file():
            return False
        with self._locked():
            return self._end()

    def is_up(self) -> bool:
        """Whether all of its daemons run."""
        if not self.layout.state.is_file():
            return False
        with self._locked():
            return self._is_up()

    def restart(self, daemon: str) -> None:
        """Ends a daemon, unless it has ended, and starts it again with what it has on disk."""
        with self._locked():
            state = self._read()
            processes.end([state.processes.pop(daemon)])
            self._start(state, daemon)

    def signal(self, daemon: str, number: signal.Signals) -> None:
        """Signals a daemon: SIGSTOP makes one that listens and does not answer."""
        self._read().processes[daemon].signal(number)

    def call(self, *words: str, check: bool = True) -> str:
        """What a client of Slurm prints."""
        done = self._run(*words)
        if check and done.returncode:
            raise ClusterError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    # ------------------------------------------------------------------- steps

    def _start_all(self, state: _State) -> None:
        self._make_database()
        for daemon in ("munged", "mariadbd", "slurmdbd"):
            self._start(state, daemon)
        self.call("sacctmgr", "-i", "add", "cluster", "ci")
        self.call("sacctmgr", "-i", "add", "account", ACCOUNT, "Description=tests", "Organization=tests")
        self.call("sacctmgr", "-i", "add", "user", "root", f"DefaultAccount={ACCOUNT}")
        for daemon in ("slurmctld", "slurmd"):
            self._start(state, daemon)

    def _make_database(self) -> None:
        done = self._run(
            "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={self.layout.database}", "--skip-test-db",
            "--auth-root-authentication-method=socket", "--auth-root-socket-user=root", "--skip-name-resolve",
            seconds=_READY,
        )  # fmt: skip
        if done.returncode:
            raise ClusterError(f"no database could be made: {(done.stderr or done.stdout).strip()[-2000:]}")

    def _start(self, state: _State, daemon: str) -> None:
        log, output = self.layout.log(daemon), self.layout.output(daemon)
        path = program(daemon) or daemon
        process = processes.start(
            daemon,
            [path, *self._options(daemon)],
            output=output,
            environment=self.layout.environment() | {_DAEMON_OF: str(self.layout.folder)},
        )
        state.processes[daemon] = process
        self._write(state)
        deadline = time.monotonic() + _READY
        while not self._answers(daemon):
            if not process.alive():
                raise with_log(f"{daemon} ended as it started", log, output)
            if time.monotonic() > deadline:
                raise with_log(f"{daemon} does not answer after {_READY:.0f} seconds", log, output)
            time.sleep(0.2)

    def _options(self, daemon: str) -> list[str]:
        folder = self.layout.folder
        return {
            "munged": [
                "--foreground",
                "--force",  # the folder may lie below one that a group can write
                "--num-threads=2",
                f"--socket={self.layout.munge_socket}",
                f"--key-file={self.layout.munge_key}",
                f"--pid-file={folder}/run/munged.pid",
                f"--seed-file={folder}/run/munged.seed",
                f"--log-file={self.layout.log('munged')}",
            ],
            "mariadbd": mariadb_options(self.layout),
        }.get(daemon, ["-D"])

    def _answers(self, daemon: str) -> bool:
        checks: dict[str, tuple[tuple[str, ...], Callable[[str], bool]]] = {
            "munged": (("munge", "-n", f"--socket={self.layout.munge_socket}"), bool),
            "mariadbd": (
                ("mariadb-admin", "--no-defaults", f"--socket={self.layout.mysql_socket}", "ping"),
                lambda said: "alive" in said,
            ),
            "slurmdbd": (("sacctmgr", "-n", "show", "cluster"), lambda _: True),
            "slurmctld": (("scontrol", "ping"), lambda said: "is UP" in said),
            "slurmd": (("sinfo", "-h", "-o", "%T"), lambda said: said.strip() in ("idle", "mixed", "allocated")),
        }
        words, right = checks[daemon]
        try:
            done = self._run(*words)
        except ClusterError:
            return False
        return done.returncode == 0 and right(done.stdout)

    def _end(self) -> bool:
        """Jobs first, then the daemons from the last to the first with what jobs left behind, then lost daemons."""
        state = self._read()
        running = {name: process for name, process in state.processes.items() if process.alive()}
        if {"slurmctld", "slurmd"} <= running.keys():
            self._cancel_jobs()
        for daemon in reversed(DAEMONS):
            if daemon in running:
                running[daemon].signal(signal.SIGCONT)
                processes.end([running[daemon]])
            if daemon == "slurmd":
                processes.end(processes.of_jobs(self.layout.slurm_conf), patience=5.0)
        lost = processes.carrying(_DAEMON_OF, str(self.layout.folder))
        processes.end(lost)
        if left := [process.pid for process in (*running.values(), *lost) if process.alive()]:
            raise ClusterError(f"processes {left} cannot be ended")
        self.layout.state.unlink(missing_ok=True)
        return bool(running or lost)

    def _cancel_jobs(self) -> None:
        with suppress(ClusterError):
            deadline = time.monotonic() + _DRAIN
            while jobs := self.call("squeue", "-h", "-o", "%A").split():
                if time.monotonic() > deadline:
                    return
                self._run("scancel", *jobs)
                time.sleep(0.5)

    def _clear(self) -> None:
        """Empties the folder but for its lock. A folder that is not one of a cluster is left alone."""
        folder = self.layout.folder
        others = [path for path in folder.iterdir() if path != self.layout.lock]
        if others and not self.layout.slurm_conf.is_file() and not (folder / "etc").is_dir():
            raise ClusterError(f"{folder} holds other things ({others[0].name}): choose another folder with --folder")
        for path in others:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    # ------------------------------------------------------------------- state

    def _is_up(self) -> bool:
        state = self._read()
        return state.processes.keys() == set(DAEMONS) and all(p.alive() for p in state.processes.values())

    def _read(self) -> _State:
        if not self.layout.state.is_file():
            return _State(Ports(0, 0, 0))
        found = json.loads(self.layout.state.read_text())
        return _State(Ports(**found["ports"]), {p["name"]: Process(**p) for p in found["processes"]})

    def _write(self, state: _State) -> None:
        content = {"ports": asdict(state.ports), "processes": [asdict(p) for p in state.processes.values()]}
        temporary = self.layout.state.with_suffix(".new")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(self.layout.state)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.layout.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _run(self, *words: str, seconds: float = _CALL) -> subprocess.CompletedProcess[str]:
        path = program(words[0])
        if path is None:
            raise ClusterError(f"there is no {words[0]}")
        try:
            return subprocess.run(
                (path, *words[1:]), env=self.layout.environment(), capture_output=True, text=True, check=False,
                timeout=seconds, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{words[0]} did not answer in {seconds:.0f} seconds") from error
