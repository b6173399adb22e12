"""Models whose files move while jobs wait: weights that are replaced, branches of the hub that go on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.fake_slurm import FakeSlurm
from tests.support.hub_cache import put_in_hub_cache
from tests.support.slurm_world import ROOT, mechstudy
from tests.support.tiny import save_tiny
from tests.support.tiny_study import write_study

OLD, NEW = "a" * 40, "b" * 40
JOBS = {"model": "tiny-model", "prompts": "tiny-prompts.mine", "baseline": "tiny-baseline.mine"}


@pytest.fixture
def world(tmp_path, monkeypatch) -> FakeSlurm:
    """The fake Slurm, with this test in the folder of a study of a real tiny model."""
    here = tmp_path / "here"
    here.mkdir()
    file = write_study(here, n_prompts=3)
    slurm = "threads: 1, slurm: {partition: cpu, time: 60}"
    file.write_text(file.read_text().replace("threads: 1", slurm))
    monkeypatch.chdir(here)
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def hub(world, tmp_path, monkeypatch) -> Path:
    """A hub cache that holds the study's model, without a network."""
    from huggingface_hub import constants

    home = tmp_path / "hub-home"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put_in_hub_cache(home, Path("model"), "acme/tiny-lm", OLD)
    shutil.rmtree("model")
    study = Path("study.yaml")
    study.write_text(study.read_text().replace("path:model", "hf:acme/tiny-lm"))
    return home


def run(world: FakeSlurm, name: str) -> int:
    ids = {job["asked"]["job-name"]: id for id, job in world.jobs.items()}
    return world.run(f"{ids[JOBS[name]]}_0")


@pytest.mark.process
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_files_replaced_between_two_jobs_are_refused(world, name):
    mechstudy("submit", "study.yaml")
    assert run(world, "model") == 0
    file = Path("model") / name
    if name == "tokenizer.json":
        file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    else:
        save_tiny(Path("other"), d=16, seed=1)
        file.write_bytes((Path("other") / name).read_bytes())
    assert run(world, "prompts") == 2
    log = next(Path("runs/tiny/slurm/logs").glob("prompts-*.log")).read_text()
    assert "the model's files have changed since this run checked them" in log and f"changed: {name}" in log


@pytest.mark.process
def test_weights_replaced_before_the_models_job_are_refused(world):
    mechstudy("submit", "study.yaml")
    save_tiny(Path("other"), d=16, seed=1)
    shutil.copy("other/model.safetensors", "model/model.safetensors")
    assert run(world, "model") == 2
    assert not list(Path("runs/tiny/artifacts").glob("model/*/manifest.json"))


@pytest.mark.process
def test_a_hub_study_runs_from_a_local_cache(world, hub):
    assert "not fetched" not in mechstudy("plan", "study.yaml").output
    said = mechstudy("submit", "study.yaml")
    assert "fetching" not in said.output + said.stderr
    assert run(world, "model") == 0 and run(world, "prompts") == 0
    model = json.loads(next(Path("runs/tiny/artifacts/model").glob("*/model.json")).read_text())
    assert model["revision"] == OLD


@pytest.mark.process
@pytest.mark.parametrize("moves", ["before the model's job", "after it"])
def test_a_branch_that_moves_while_jobs_wait_is_pinned(world, hub, moves):
    mechstudy("submit", "study.yaml")
    save_tiny(Path("newer"), d=16, seed=1)
    if moves == "before the model's job":
        put_in_hub_cache(hub, Path("newer"), "acme/tiny-lm", NEW)
        status = json.loads(mechstudy("status", "study.yaml", "--json").stdout)
        assert {unit["status"] for unit in status["units"]} == {"queued"}
    assert run(world, "model") == 0
    if moves == "after it":
        put_in_hub_cache(hub, Path("newer"), "acme/tiny-lm", NEW)
    assert run(world, "prompts") == 0 and run(world, "baseline") == 0
    model = json.loads(next(Path("runs/tiny/artifacts/model").glob("*/model.json")).read_text())
    assert model["revision"] == OLD
    status = json.loads(mechstudy("status", "study.yaml", "--json").stdout)
    assert {unit["name"] for unit in status["units"] if unit["status"] == "done"} >= {"model", "baseline[mine]"}
    said = mechstudy("plan", "study.yaml")
    assert f"hf:acme/tiny-lm@{NEW}" in said.output + said.stderr
    fresh = json.loads(mechstudy("status", "study.yaml", "--json", "--out", "fresh").stdout)
    assert not [unit for unit in fresh["units"] if unit["status"] == "done"]


@pytest.mark.process
def test_a_snapshot_without_weights_is_refused(world, hub):
    for file in (hub / "hub" / "models--acme--tiny-lm" / "snapshots" / OLD).glob("*.safetensors"):
        file.unlink()
    error = mechstudy("submit", "study.yaml", code=2).stderr
    assert "hf:acme/tiny-lm cannot be fetched" in error and os.environ["HF_HUB_OFFLINE"] == "1"
