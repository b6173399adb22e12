"""The cluster that is up, and one local run of the study that every other run is compared with."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.cluster.cluster import FOLDER, Cluster
from tests.slurm.runs import Submitted, checksums, local_run
from tests.slurm.study import save_model, write_study


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of $SLURM_CONF, or that of `make slurm-up`."""
    named = os.environ.get("SLURM_CONF")
    found = Cluster(Path(named).parents[1] if named else FOLDER)
    if not found.is_up():
        pytest.skip("no Slurm cluster is up: make slurm-up")
    return found


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same one in every process of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def model(shared: Path) -> Path:
    folder = shared / "model"
    with _once(shared / "model.done") as first:
        if first:
            save_model(folder)
    return folder


@pytest.fixture(scope="session")
def expected(shared: Path, model: Path) -> dict[str, str]:
    """The checksums of a run without Slurm."""
    folder = shared / "local"
    with _once(shared / "local.done") as first:
        if first:
            local_run(write_study(folder, model), folder / "run")
    return checksums(folder / "run")


@pytest.fixture
def submitted(cluster: Cluster, model: Path, tmp_path: Path) -> Iterator[Submitted]:
    """The study in a folder of its own, to be submitted; its jobs are cancelled at the end."""
    found = Submitted(cluster, write_study(tmp_path / "study", model))
    yield found
    found.cancel_jobs()


@contextmanager
def _once(done: Path) -> Iterator[bool]:
    """True for the first of several processes, which the others wait for."""
    with done.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()
