"""A study as a user runs it: the command line, the queue, and what lies on disk in the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Self

from tests.slurm.cluster.cluster import Cluster

# Files that hold clock times. Every other one must be the same bytes.
LOGS = re.compile(r"scalars\.jsonl|timing\.json|tensorboard/.*")
PAGES = re.compile(r"[^/]+\.html|(data|figures)/(chart-)?(compute|usage)-[^/]+")  # of a report
_MARK = "MECHSTUDY_TEST_MARK"


def wait_until(reached: Callable[[], object], what: str, *, seconds: float = 300.0) -> None:
    """Polls until ``reached`` is true; fails with ``what`` was waited for.

    Patient, as jobs of other tests have the node's CPUs first.
    """
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} seconds for {what}"
        time.sleep(0.25)


def environment() -> dict[str, str]:
    """One thread each, as CPUs are what there is least of."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def local_run(file: Path, run: Path, *overrides: str, variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """Runs a study without Slurm."""
    words = [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(
        [sys.executable, "-m", "mechstudy", "run", str(file), "--out", str(run), *words],
        env=environment() | variables, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def checksums(run: Path) -> dict[str, str]:
    """Artifact and file -> sha256, for every file of every artifact that is no log."""
    found = {}
    for manifest in run.glob("artifacts/*/*/manifest.json"):
        content = json.loads(manifest.read_text())
        timed = PAGES if content["phase"] == "report" else LOGS
        for name, entry in content["files"].items():
            if not timed.fullmatch(name):
                found[f"{manifest.parent.name}/{name}"] = entry["sha256"]
    return found


def units(run: Path) -> set[str]:
    """The units whose artifacts are there."""
    return {json.loads(path.read_text())["unit"] for path in run.glob("artifacts/*/*/manifest.json")}


@dataclass(frozen=True)
class Row:
    """A line of squeue: one job, or one element of an array."""

    job: str
    task: str
    name: str
    state: str
    reason: str


class Submitted:
    """A study, its run's folder and its jobs, which are shown by their working folder."""

    def __init__(self, cluster: Cluster, file: Path) -> None:
        self.cluster, self.file, self.folder = cluster, file, file.parent
        self.run = file.parent / "run"
        self.environment = cluster.layout.environment() | {"OMP_NUM_THREADS": "1", _MARK: uuid.uuid4().hex}

    def mechstudy(
        self, command: str, *words: str, code: int | None = 0, environment: dict[str, str] | None = None
    ) -> str:
        """What a command prints on both streams; its exit status must be ``code``, if given."""
        done = subprocess.run(
            [sys.executable, "-m", "mechstudy", command, str(self.file), *words, "--out", str(self.run)],
            env=self.environment | (environment or {}), cwd=self.folder, capture_output=True, text=True, check=False,
            timeout=400,
        )  # fmt: skip
        shown = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"{command} exited with {done.returncode}\n{shown[-3000:]}"
        assert "Traceback" not in shown, shown[-3000:]
        return shown

    def queue(self) -> list[Row]:
        """Its jobs that have not ended."""
        printed = self.cluster.call("squeue", "-h", "-r", "-o", "%Z|%F|%K|%j|%T|%r")
        rows = [line.split("|") for line in printed.splitlines()]
        return [Row(*row[1:]) for row in rows if row[0] == str(self.folder)]

    def wait(self, *, seconds: float = 600.0) -> None:
        """Until no job of it is left."""
        try:
            wait_until(lambda: not self.queue(), "the study's jobs to end", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def accounted(self, phase: str, field: str) -> list[str]:
        """A field of Slurm's accounting, of every run of a phase's jobs, requeued ones too."""
        printed = self.cluster.call(
            "sacct", "-D", "-X", "-n", "-P", "-S", "now-1hour", f"--name=tiny-{phase}", "-o", f"WorkDir,{field}"
        )
        rows = [row.split("|", 1) for row in printed.splitlines()]
        return [value for folder, value in rows if folder == str(self.folder)]

    def is_complete(self) -> bool:
        """Whether all that was submitted is there: a report alone may be of less."""
        submissions = sorted(self.run.glob("slurm/[0-9]*/frozen.json"))
        wanted = {unit["name"] for file in submissions[-1:] for unit in json.loads(file.read_text())["units"]}
        return bool(wanted) and wanted <= units(self.run) and (self.run / "report" / "index.html").is_file()

    def assert_equals(self, expected: dict[str, str]) -> None:
        """Every unit is there, and every file is that of the run without Slurm.

        Beside them there may be a report of what was there before, with the pages of its features and its verdicts.
        """
        found = checksums(self.run)
        assert self.is_complete(), self.story()
        of_what_was_there = ("report-", "features-", "verdict-")
        odd = {name for name in found.keys() ^ expected.keys() if not name.startswith(of_what_was_there)}
        assert not odd, sorted(odd)
        assert expected.items() <= found.items(), [name for name in expected if found.get(name) != expected[name]]

    def cancel_jobs(self) -> None:
        with suppress(AssertionError):
            if jobs := sorted({row.job for row in self.queue()}):
                self.cluster.call("scancel", *jobs, check=False)
            wait_until(lambda: not self.queue(), "its jobs to be cancelled")

    def workers(self) -> list[int]:
        """Pids of the tool's processes in its jobs."""
        return [pid for pid, words, _ in _processes() if b"mechstudy" in words and str(self.run).encode() in words]

    def left_behind(self) -> list[str]:
        """Command lines of processes that its commands started and that are in no job: what stays on a login node."""
        mark = f"{_MARK}={self.environment[_MARK]}".encode()
        return [
            b" ".join(words).decode(errors="replace")
            for _, words, variables in _processes()
            if mark in variables and not any(v.startswith(b"SLURM_JOB_ID=") for v in variables)
        ]

    def story(self) -> str:
        """What is in the queue, what each unit's state says, and the ends of the jobs' logs."""
        parts = [str(row) for row in self.queue()]
        parts += [path.read_text()[-600:] for path in sorted(self.run.glob("units/*.json"))]
        parts += [f"{path.name}:\n{path.read_text()[-1200:]}" for path in sorted(self.run.glob("slurm/logs/*.log"))]
        return "\n".join(parts)


def _processes() -> list[tuple[int, list[bytes], list[bytes]]]:
    """(pid, command line, environment) of every process that can be read."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                found.append((int(entry.name), words, (entry / "environ").read_bytes().split(b"\0")))
    return found


@dataclass
class Publishes:
    """Watches a run's artifacts, so that one that is made a second time is seen: another folder of the same name."""

    run: Path
    seen: dict[str, set[tuple[int, str]]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        for manifest in self.run.glob("artifacts/*/*/manifest.json"):
            with suppress(OSError, ValueError):
                identity = (manifest.parent.stat().st_ino, json.loads(manifest.read_text())["finished"])
                self.seen.setdefault(manifest.parent.name, set()).add(identity)

    def twice(self) -> list[str]:
        """Artifacts that were published more than once."""
        self.look()
        return [name for name, found in self.seen.items() if len(found) > 1]

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self.look()
