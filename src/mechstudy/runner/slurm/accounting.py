"""Slurm's accounting of the jobs of a run, from sacct where a site has it, and kept in `<run>/slurm/accounting.jsonl`.

The file has one line a job. It is complete only once a job has ended, so no manifest can hold it, and sites delete
theirs after some weeks or months.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path, not_stale
from mechstudy.runner.slurm.commands import SlurmError, call
from mechstudy.runner.slurm.frozen import SLURM
from mechstudy.runner.slurm.queue import clock_seconds
from mechstudy.store.artifacts import Artifact
from mechstudy.store.provenance import job_of, sessions_of

FILE = "accounting.jsonl"
_UNKNOWN = ("", "Unknown", "None")
_FIELDS = (
    "JobID", "State", "ExitCode", "ElapsedRaw", "CPUTimeRAW", "TotalCPU", "AllocTRES", "MaxRSS", "Start", "End",
    "NodeList", "Eligible",
)  # fmt: skip


@dataclass(frozen=True)
class Accounted:
    """One run of a job by Slurm's accounting; a requeued job has one for each time it ran.

    ``job`` is ``12_3``; seconds of wall time and of CPU time held and used; bytes at the peak where they were measured;
    ``start``, ``end`` and ``eligible`` (when it could have begun) as the cluster writes them; ``unit`` as the run's
    record says.
    """

    job: str
    state: str
    exit_code: int = 0
    signal: int = 0
    seconds: float = 0.0
    cpu_seconds_held: float = 0.0
    cpu_seconds_used: float = 0.0
    cpus: int = 0
    gpus: int = 0
    memory_bytes: int = 0
    peak_rss_bytes: int | None = None
    start: str = ""
    end: str = ""
    node: str = ""
    eligible: str = ""
    unit: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Identifies a run of a job; a job that has not started has one row."""
        return (self.job, "" if self.start in _UNKNOWN else self.start)

    @property
    def waited(self) -> float:
        """Seconds in the queue after everything it depends on had ended; 0 where the cluster does not say."""
        with suppress(ValueError):  # "Unknown", "None"
            start, eligible = (datetime.fromisoformat(text) for text in (self.start, self.eligible))
            return max(0.0, (start - eligible).total_seconds())
        return 0.0


_ROW = TypeAdapter(Accounted)  # fields of other versions are ignored


def accounting(jobs: Iterable[str]) -> list[Accounted] | None:
    """Every run of these jobs, requeued ones too (``sacct -D``); None where there is no accounting to ask."""
    wanted = sorted(set(jobs), key=int)
    if not wanted or shutil.which("sacct") is None:
        return [] if not wanted else None
    runs: list[Accounted] = []
    try:
        for start in range(0, len(wanted), 200):
            some = ",".join(wanted[start : start + 200])
            words = ("sacct", "-D", "-n", "-P", "-j", some, "-o", ",".join(_FIELDS))
            runs.extend(_accounted(call(*words, attempts=1)))
    except SlurmError:  # a site without slurmdbd has the command all the same
        return None
    return runs


def _accounted(printed: str) -> list[Accounted]:
    """One entry for each job line; the peak memory stands in the lines of its steps, which come after it."""
    runs: list[Accounted] = []
    for line in printed.splitlines():
        parts = line.split("|")
        if len(parts) != len(_FIELDS):
            continue
        row = dict(zip(_FIELDS, parts, strict=True))
        id, _, step = row["JobID"].partition(".")
        if "[" in id:  # elements that never became jobs of their own
            continue
        if not step:
            tres = dict(part.split("=", 1) for part in row["AllocTRES"].split(",") if "=" in part)
            code, _, signal = row["ExitCode"].partition(":")
            runs.append(
                Accounted(
                    id, (row["State"].split() or [""])[0], int(code or 0), int(signal or 0),
                    float(row["ElapsedRaw"] or 0), float(row["CPUTimeRAW"] or 0), clock_seconds(row["TotalCPU"]),
                    int(tres.get("cpu", 0)), int(tres.get("gres/gpu", 0)), _bytes(tres.get("mem", "")) or 0, None,
                    row["Start"], row["End"], row["NodeList"], row["Eligible"],
                )
            )  # fmt: skip
        elif runs and runs[-1].job == id and (peak := _bytes(row["MaxRSS"])):
            last = runs[-1]
            runs[-1] = replace(last, peak_rss_bytes=max(peak, last.peak_rss_bytes or 0))
    return runs


def _bytes(text: str) -> int | None:
    """``1024K``, ``3.5G`` as bytes."""
    match = re.fullmatch(r"([\d.]+)([KMGTP]?)[nc]?", text.strip())
    return int(float(match[1]) * 1024 ** " KMGTP".index(match[2] or " ")) if match else None


def keep_accounting(run: Path, units: Mapping[str, str], accounted: Sequence[Accounted]) -> list[Accounted]:
    """Adds the current accounting to what was kept before, and returns all rows.

    Args:
        units: job -> unit; jobs of others are left out.
    """
    new = [replace(item, unit=units[item.job]) for item in accounted if item.job in units]
    begun = {row.job for row in new if row.key[1]}
    before = [row for row in read_accounting(run) if row.key[1] or row.job not in begun]
    by_key = {row.key: row for row in before} | {row.key: row for row in new}
    rows = sorted(by_key.values(), key=lambda row: (row.job, row.start))
    if rows and rows != before:
        with suppress(OSError, MechstudyError):  # a read-only folder or a full disk is no reason to fail
            text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
            with atomic_path(accounting_file(run)) as temporary:
                temporary.write_text(text)
    return rows


def read_accounting(run: Path) -> list[Accounted]:
    """The rows kept for a run; damaged lines are skipped."""
    rows: list[Accounted] = []
    try:
        text = not_stale(accounting_file(run).read_text)
    except FileNotFoundError:
        return rows
    for line in text.splitlines():
        with suppress(ValueError):
            rows.append(_ROW.validate_json(line))
    return rows


def accounting_of(run: Path, artifact: Artifact) -> list[Accounted]:
    """The rows of the jobs that worked on an artifact; where its manifest names none, of all jobs of its unit."""
    rows = [row for row in read_accounting(run) if row.unit == artifact.unit]
    jobs = {job for session in sessions_of(artifact.manifest) if (job := job_of(session)) is not None}
    return [row for row in rows if row.job in jobs] if jobs else rows


def accounting_file(run: Path) -> Path:
    """The file that keeps it."""
    return run / SLURM / FILE
