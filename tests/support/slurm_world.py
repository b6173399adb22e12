"""A study of toy units, a folder to be in, and a fake Slurm: what the Slurm tests share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechstudy.runner.slurm import commands
from tests.support.fake_slurm import FakeSlurm
from tests.support.toy_model import mechstudy, write_model
from tests.support.toy_units import chain, unit, use

ROOT = Path(__file__).parents[2]
RUN = Path("runs/toy")
STUDY = (
    "name: toy\n"
    "model: {source: 'path:model'}\n"
    "behaviours:\n"
    "  - {name: country_capital, n_train: 4, n_test: 4}\n"
    "corpus: {source: 'text:text.txt', tokens: 4096}\n"
    "compute:\n"
    "  device: cpu\n"
    "  slurm:\n"
    "    partition: cpu\n"
    "    time: 01:00:00\n"
)


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> FakeSlurm:
    """The fake Slurm, with this test in a folder that holds ``study.yaml``."""
    here = tmp_path / "here"
    write_model(here / "model")
    monkeypatch.chdir(here)
    monkeypatch.delenv("MECHSTUDY_DEBUG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")  # of jobs, whose units are toys
    monkeypatch.setattr(commands, "PAUSE", 0.01)
    (here / "text.txt").write_text("Some text.\n")
    (here / "study.yaml").write_text(STUDY)
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def layers(n: int = 3, **train):
    """model -> train[0..n-1] -> report."""
    trains = [unit(f"train[{i}]", ["model"], **{"value": i, **train}) for i in range(n)]
    return [unit("model"), *trains, unit("report", ["model", *(t.name for t in trains)], optional_inputs=True)]


def statuses(*arguments: str) -> dict[str, str]:
    """unit -> status, as `mechstudy status --json` says."""
    found = json.loads(mechstudy("status", "study.yaml", "--json", *arguments).stdout)
    return {item["name"]: item["status"] for item in found["units"]}


def arrays(cluster) -> dict[str, str]:
    """job name -> array and dependency of every job."""
    return {
        job["asked"]["job-name"]: job["asked"]["array"] + " " + job["asked"].get("dependency", "")
        for job in cluster.jobs.values()
    }


__all__ = ["ROOT", "RUN", "STUDY", "arrays", "chain", "cluster", "layers", "mechstudy", "statuses", "unit", "use"]
