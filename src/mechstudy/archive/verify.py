"""Verification of a run: every byte against its checksum; damaged artifacts are renamed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from mechstudy.core.errors import MechstudyError
from mechstudy.core.files import disk_errors
from mechstudy.store.artifacts import DAMAGED, UNPUBLISHED, Problem
from mechstudy.study.run_folder import RunFolder


@dataclass(frozen=True)
class Verified:
    """The number of artifacts read, their problems, and the new paths of damaged artifacts."""

    n_artifacts: int
    problems: list[Problem]
    moved: dict[str, Path]


def verify_run(folder: Path) -> Verified:
    """Reads every file of every artifact. A damaged artifact is renamed to ``<name>.damaged``.

    The next run then rebuilds that unit, and no other.

    Raises:
        MechstudyError: there is no such run, or it is in use.
    """
    run = RunFolder(folder)
    if not run.store.root.is_dir():
        raise MechstudyError("there is no run here", where=str(folder), fix="run the study first, or give --out")
    with run.lock():
        folders = [path.name for path in run.store.root.glob("*/*") if path.is_dir()]
        problems = run.store.verify()
        moved = {name: _set_aside(run, name) for name in dict.fromkeys(p.artifact for p in problems)}
        return Verified(sum(not name.endswith(UNPUBLISHED) for name in folders), problems, moved)


def _set_aside(run: RunFolder, artifact: str) -> Path:
    path = run.store.root / artifact
    aside = path.with_name(path.name + DAMAGED)
    with disk_errors(path):
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    return aside
