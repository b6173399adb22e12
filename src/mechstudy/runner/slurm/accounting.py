"""`<run>/slurm/accounting.jsonl`: what the cluster accounted for each job of a run, a line each, beside the artifacts.

It is known only once a job has ended, so no manifest can hold it; and a site forgets it after some weeks or months, so
whoever asks (`cost`) keeps what it is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

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
    """One run of a job, and the unit it ran for: one that was put back has a row for each."""

    unit: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells runs of a job apart; of one that has not begun there is one row."""
        return (self.job, "" if self.start in _UNKNOWN else self.start)


def keep_accounting(run: Path, units: Mapping[str, str], accounted: Sequence[Accounted]) -> list[AccountingRow]:
    """Adds what the cluster says now to what it has said before, and returns it all. Nothing known is lost.

    Args:
        units: job -> unit; jobs of others are left out.
    """
    new = [_row({"unit": units[item.job], **asdict(item)}) for item in accounted if item.job in units]
    begun = {row.job for row in new if row.key[1]}
    before = [row for row in read_accounting(run) if row.key[1] or row.job not in begun]
    found = {row.key: row for row in before} | {row.key: row for row in new}
    rows = sorted(found.values(), key=lambda row: (row.job, row.start))
    if rows and rows != before:
        with suppress(OSError, MechstudyError):  # a folder that is only read, or a full disk, is no reason to fail
            text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
            with atomic_path(accounting_file(run)) as temporary:
                temporary.write_text(text)
    return rows


def read_accounting(run: Path) -> list[AccountingRow]:
    """What is kept of a run's jobs; a line that is not whole, or of a later version, is read as far as it goes."""
    rows: list[AccountingRow] = []
    try:
        text = not_stale(accounting_file(run).read_text)
    except FileNotFoundError:
        return rows
    for line in text.splitlines():
        with suppress(ValueError, TypeError, KeyError):
            rows.append(_row(json.loads(line)))
    return rows


def accounting_of(run: Path, artifact: Artifact) -> list[AccountingRow]:
    """The rows of the jobs that worked on an artifact; where its manifest names none, of all jobs of its unit."""
    rows = [row for row in read_accounting(run) if row.unit == artifact.unit]
    jobs = {job for session in sessions_of(artifact.manifest) if (job := job_of(session)) is not None}
    return [row for row in rows if row.job in jobs] if jobs else rows


def accounting_file(run: Path) -> Path:
    """Where it is kept."""
    return run / FOLDER / FILE


def _row(found: Mapping[str, Any]) -> AccountingRow:
    known = {item.name for item in fields(AccountingRow)}
    return AccountingRow(**{name: value for name, value in found.items() if name in known})
