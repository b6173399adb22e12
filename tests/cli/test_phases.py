"""Commands of single phases: which units they run, and how."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.toy_model import mechstudy
from tests.support.toy_units import unit, use


@pytest.fixture
def asked(here, monkeypatch):
    """Records what phase commands hand to the engine instead of running it."""
    from mechstudy.cli import phases

    record = {}

    def run_units(opened, targets, *, records=(False, False), resume=None):
        record.update(opened=opened, study=opened.study, targets=list(targets), records=records, resume=resume or {})
        return 0

    monkeypatch.setattr(phases, "run_units", run_units)
    return record


def test_a_phase_command_runs_the_units_of_its_phase(asked):
    mechstudy("baseline", "study.yaml", "--n-samples", "7")
    assert asked["targets"] == ["baseline[country_capital]"]
    assert (asked["study"].behaviours[0].n_train, asked["study"].behaviours[0].n_test) == (7, 7)


def test_train_selects_layers_without_changing_captures(asked):
    mechstudy("train", "study.yaml", "--layers", "1,3", "--max-steps", "5", "--profile", "--threads", "3")
    assert asked["targets"] == ["train[1]", "train[3]"]
    assert asked["study"].dictionaries.layers == "1-3", "so the captured groups stay the same"
    assert asked["study"].dictionaries.training.steps == 5
    assert asked["study"].compute.threads == 3 and asked["records"] == (True, False)


def test_train_trains_the_variants_too_and_resumes_the_layers_own(asked, here):
    (here / "checkpoint.safetensors").write_text("weights")
    more = ("--set", "dictionaries.variants=[{name: again}]", "--layers", "2")
    mechstudy("train", "study.yaml", *more, "--resume-from", "checkpoint.safetensors")
    assert asked["targets"] == ["train[2]", "variant[2:again]"]
    assert asked["resume"] == {"train[2]": Path("checkpoint.safetensors")}


@pytest.mark.parametrize("command", ["attribute", "intervene"])
def test_a_phase_that_the_study_leaves_out_is_refused_with_the_reason(asked, command):
    saes = ("--set", "dictionaries.architecture.kind=sae", "--set", "dictionaries.site=mlp_act")
    refused = mechstudy(command, "study.yaml", *saes, code=2).stderr
    assert f"nothing to {command}" in refused and "graphs need transcoders" in refused


def test_train_takes_layers_the_study_has_not_named(asked):
    mechstudy("train", "study.yaml", "--layers", "5")
    assert asked["targets"] == ["train[5]"]


def test_train_refuses_a_layer_that_the_model_has_not(asked):
    assert "layer 6 does not exist" in mechstudy("train", "study.yaml", "--layers", "6", code=2).stderr


def test_capture_takes_layers_for_prompts_and_the_groups_that_hold_them(asked):
    mechstudy("capture", "study.yaml", "--layers", "2-3", "--n-samples", "6")
    assert asked["targets"] == ["capture[country_capital]", "capture[corpus:1-2]", "capture[corpus:3]"]
    assert asked["study"].capture.layers == "2-3"
    mechstudy("capture", "study.yaml", "--prompts")
    assert asked["targets"] == ["capture[country_capital]"]


def test_the_other_phases_take_their_numbers_of_prompts(asked):
    mechstudy("attribute", "study.yaml", "--n-samples", "3")
    assert (asked["targets"], asked["study"].attribution.n_prompts) == (["attribute[country_capital]"], 3)
    mechstudy("intervene", "study.yaml", "--n-samples", "9")
    assert (asked["targets"], asked["study"].interventions.n_samples) == (["intervene[country_capital]"], 9)


def test_resume_from_takes_one_layer_and_a_checkpoint(asked, here):
    checkpoint = here / "old" / "checkpoint.safetensors"
    checkpoint.parent.mkdir()
    checkpoint.write_text("weights")
    mechstudy("train", "study.yaml", "--layers", "2", "--resume-from", "old")
    assert asked["resume"] == {"train[2]": Path("old/checkpoint.safetensors")}
    error = mechstudy("train", "study.yaml", "--resume-from", "old", code=2).stderr
    assert "3 are selected" in error and "--layers 12" in error
    assert (
        "no such checkpoint" in mechstudy("train", "study.yaml", "--layers", "2", "--resume-from", "x", code=2).stderr
    )


def test_a_phase_command_says_where_its_artifacts_are(here, monkeypatch):
    use(monkeypatch, [unit("model"), unit("train[1]", ["model"], layer=1), unit("train[2]", ["model"], layer=2)])
    output = mechstudy("train", "study.yaml", "--layers", "2").stdout
    assert re.fullmatch(r"train\[2\]: done: runs/tiny/artifacts/train/train-2-\w{12}\n", output)
