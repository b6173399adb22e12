"""A finished run of the tiny study, made once for all test processes; every module gets a copy of its own."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

import mechstudy as ms
from tests.support.tiny_study import write_study

UNITS = ("baseline[mine]", "intervene[mine]", "features")  # and all that they need


def finished_study(factory: pytest.TempPathFactory, worker_id: str) -> ms.Run:
    """A run at ``<folder>/runs/tiny`` of ``<folder>/study.yaml``, of the units `UNITS`.

    Args:
        factory: gives the module's copy its folder.
        worker_id: pytest-xdist's fixture.
    """
    base = factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # of all workers of one run of pytest
    made = shared / "finished_study"
    with (shared / "finished_study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = shared / "finished_study.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            study = ms.Study.load(write_study(unfinished), out=unfinished / "runs" / "tiny", say=lambda _: None)
            study.run(list(UNITS))
            unfinished.rename(made)
    own = factory.mktemp("finished") / "study"
    shutil.copytree(made, own, symlinks=True)
    return ms.open_run(own / "runs" / "tiny")


def study_file(run: ms.Run) -> Path:
    """The study file of such a run."""
    return run.path.parents[1] / "study.yaml"
