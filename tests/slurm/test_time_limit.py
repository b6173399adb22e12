"""Jobs that end before their unit does: at the time limit, and where a site lets no job go back into the queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.cluster.settings import SHORT
from tests.slurm.runs import Publishes, Submitted, checksums, local_run, wait_until
from tests.slurm.study import ONE_BEHAVIOUR, write_study

pytestmark = pytest.mark.slurm

ONE_LAYER = (ONE_BEHAVIOUR, "dictionaries.layers=1")
SECONDS = 45  # of training. Slurm looks at limits every 30 seconds, so that with a lead of 58 a job runs 2 to 32


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def runs_of(submitted: Submitted, phase: str) -> list[str]:
    """States of every run of a phase's jobs, requeued ones too."""
    return [state.split()[0] for state in submitted.accounted(phase, "State")]


def training_seconds(run: Path) -> float:
    [file] = run.glob("artifacts/train/train-0-*/timing.json")
    return float(json.loads(file.read_text())["train_seconds"])


def test_a_training_over_its_time_limit_is_requeued_until_done(submitted, expected, shared, model, tmp_path):
    """How fast it trains was measured on a machine that may have been busier: where the limit was not met, longer."""
    rate = 200 / training_seconds(shared / "local" / "run")
    for attempt in range(1, 4):
        submitted.run = submitted.folder / f"run-{attempt}"
        steps = int(rate * SECONDS * 4 ** (attempt - 1))
        recipe = (*ONE_LAYER, f"dictionaries.training.steps={steps}", f"dictionaries.training.checkpoint_every={steps}")
        submitted.mechstudy("submit", *sets(*recipe, f"compute.slurm.phases={{train: {{partition: {SHORT}}}}}"))
        submitted.wait()
        states = runs_of(submitted, "train")
        if "REQUEUED" in states:
            break
    assert "REQUEUED" in states and "TIMEOUT" not in states and states.count("COMPLETED") == attempt, states
    alone = write_study(tmp_path / "alone", model)
    local_run(alone, alone.parent / "run", *recipe)
    submitted.assert_equals(checksums(alone.parent / "run"))


def test_where_a_site_forbids_requeue_a_successor_continues(submitted, model, tmp_path):
    recipe = (*ONE_LAYER, "dictionaries.training.steps=3000", "dictionaries.training.checkpoint_every=3000")
    alone = write_study(tmp_path / "alone", model)
    local_run(alone, alone.parent / "run", *recipe)
    with Publishes(submitted.run) as publishes:
        submitted.mechstudy("submit", *sets(*recipe))
        [job] = {row.job for row in submitted.queue() if row.name == "tiny-train"}
        submitted.cluster.call("scontrol", "update", f"JobId={job}", "Requeue=0")
        wait_until(lambda: list(submitted.run.glob("artifacts/train/*.partial/.scratch")), "training", seconds=400)
        submitted.cluster.call("scancel", "--batch", "--signal=USR1", f"{job}_0")  # as before a time limit
        wait_until(lambda: job not in {row.job for row in submitted.queue()}, "the job to end")
        after = {row.name: row.job for row in submitted.queue()}
        assert int(after["tiny-train"]) > int(after["tiny-report"]), after
        submitted.wait()
    submitted.assert_equals(checksums(alone.parent / "run"))
    assert publishes.twice() == []
    assert "REQUEUED" not in runs_of(submitted, "train") and len(runs_of(submitted, "train")) == 2
