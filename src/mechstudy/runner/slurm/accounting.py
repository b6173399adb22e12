"""`<run>/slurm/accounting.jsonl`: Slurm's accounting of each job of a run, one line a job.

It is complete only once a job has ended, so no manifest can hold it, and sites delete it after some weeks or months.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import atomic_path, not_stale
from mechstudy.runner.slurm.queue import Accounted
from mechstudy.store.artifacts import Artifact
from mechstudy.store.sessions import job_of, sessions_of

FILE = "accounting.jsonl"
FOLDER = "slurm"
_UNKNOWN = ("", "Unknown", "None")


@dataclass(frozen=True)
class AccountingRow(Accounted):
    """One run of a job, and its unit; a requeued job has a row for each of its runs."""

    unit: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Identifies a run of a job; a job that has not started has one row."""
        return (self.job, "" if self.start in _UNKNOWN else self.start)


_ROW = TypeAdapter(AccountingRow)  # fields of other versions are ignored


def keep_accounting(run: Path, units: Mapping[str, str], accounted: Sequence[Accounted]) -> list[AccountingRow]:
    """Adds the current accounting to what was kept before, and returns all rows.

    Args:
        units: job -> unit; jobs of others are left out.
    """
    new = [AccountingRow(**asdict(item), unit=units[item.job]) for item in accounted if item.job in units]
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


def read_accounting(run: Path) -> list[AccountingRow]:
    """The rows kept for a run; damaged lines are skipped."""
    rows: list[AccountingRow] = []
    try:
        text = not_stale(accounting_file(run).read_text)
    except FileNotFoundError:
        return rows
    for line in text.splitlines():
        with suppress(ValueError):
            rows.append(_ROW.validate_json(line))
    return rows


def accounting_of(run: Path, artifact: Artifact) -> list[AccountingRow]:
    """The rows of the jobs that worked on an artifact; where its manifest names none, of all jobs of its unit."""
    rows = [row for row in read_accounting(run) if row.unit == artifact.unit]
    jobs = {job for session in sessions_of(artifact.manifest) if (job := job_of(session)) is not None}
    return [row for row in rows if row.job in jobs] if jobs else rows


def accounting_file(run: Path) -> Path:
    """The file that keeps it."""
    return run / FOLDER / FILE
