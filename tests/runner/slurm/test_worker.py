"""Units of every kind as jobs run them: asked to stop again and again, they end with an uninterrupted run's bytes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from mechstudy.core import signals as stopping
from mechstudy.core.progress import Bar
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.slurm.frozen import Frozen, freeze, thaw
from mechstudy.runner.slurm.worker import CHECKPOINTED, run_in_job
from mechstudy.runner.study_run import execute
from mechstudy.runner.unit_state import read_state
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.study.slurm_config import SlurmConfig
from tests.support.tiny_study import write_study

LOGS = ("scalars.jsonl", "timing.json")
SMALL = (
    "interventions={n_samples: 4, n_groups: 1, group_size: 2, n_controls: 1, resample_draws: 1, alphas: [1],"
    " n_edges: 4, save_every: 2, patching: {layers: '1', n_pairs: 2}, bootstrap: 100, permutations: 99}",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Frozen:
    """A study that ran without a stop, frozen."""
    folder = tmp_path_factory.mktemp("study")
    opened = open_study(write_study(folder, n_prompts=3, steps=12), SMALL, out=folder / "run")
    targets = [unit.name for unit in opened.units if unit.phase.name not in ("features", "report")]
    assert execute(opened, targets).exit_code == 0
    study = opened.study.canonical()
    freeze(Frozen(folder / "run", 1, opened.file, SMALL, study, opened.units, opened.options, SlurmConfig()))
    return thaw(folder / "run", 1)


def sums(run: Path, unit: str) -> dict[str, str]:
    [artifact] = [artifact for artifact in ArtifactStore(run / "artifacts").all() if artifact.unit == unit]
    return {name: file["sha256"] for name, file in artifact.manifest["files"].items() if not name.startswith(LOGS)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "stops"),
    [
        ("capture[corpus:0-1]", 1),  # one window of rows: what is in it is computed again
        ("train[1]", 2),
        ("attribute[mine]", 1),
        ("intervene[mine]", 2),
    ],
)
def test_a_unit_that_is_stopped_again_and_again_ends_with_the_same_bytes(whole, unit, stops, tmp_path, monkeypatch):
    shutil.copytree(whole.run, tmp_path / "run")
    store = ArtifactStore(tmp_path / "run" / "artifacts")
    for artifact in store.all():
        if artifact.unit == unit:
            store.remove(artifact)
    advances = 0
    inner = Bar.advance

    def advance(bar: Bar, *done, **info) -> None:
        nonlocal advances
        advances += 1
        if advances in [2, 7][:stops]:
            os.kill(os.getpid(), signal.SIGUSR1)
        inner(bar, *done, **info)

    monkeypatch.setattr(Bar, "advance", advance)
    codes = []
    while not codes or codes[-1] == CHECKPOINTED:
        with stopping.polite():
            codes.append(run_in_job(thaw(tmp_path / "run", 1), unit))
    assert codes == [CHECKPOINTED] * stops + [0]
    assert sums(tmp_path / "run", unit) == sums(whole.run, unit)
    state = read_state(tmp_path / "run", unit)
    assert state is not None and [attempt.exit_code for attempt in state.attempts] == codes
