"""A model of the hub in a local cache, without a network, as clusters have it."""

from __future__ import annotations

import json

import pytest

from tests.slurm.runs import Submitted, checksums, local_run
from tests.slurm.study import ONE_BEHAVIOUR, write_study
from tests.support.hub_cache import put_in_hub_cache

pytestmark = pytest.mark.slurm

COMMIT = "c" * 40
SMALL = (ONE_BEHAVIOUR, "dictionaries.layers=1-2", "dictionaries.training.steps=40")


def test_a_hub_study_ends_with_the_bytes_of_a_local_run(cluster, model, tmp_path):
    put_in_hub_cache(tmp_path / "hf", model, "org/tiny", COMMIT)
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "MECHSTUDY_CACHE": str(tmp_path / "cache")}
    local = write_study(tmp_path / "local", "hf:org/tiny")
    local_run(local, local.parent / "run", *SMALL, variables=offline)
    submitted = Submitted(cluster, write_study(tmp_path / "study", "hf:org/tiny"))
    submitted.environment |= offline
    try:
        said = submitted.mechstudy("submit", *(word for change in SMALL for word in ("--set", change)))
        assert "fetching" not in said
        submitted.wait(seconds=1200)
        submitted.assert_equals(checksums(local.parent / "run"))
    finally:
        submitted.cancel_jobs()
    script = (submitted.run / "slurm" / "001" / "model.sbatch").read_text()
    assert f"export HF_HOME={tmp_path / 'hf'}\n" in script and "export HF_HUB_OFFLINE=1\n" in script
    [described] = submitted.run.glob("artifacts/model/*/model.json")
    assert json.loads(described.read_text())["revision"] == COMMIT
