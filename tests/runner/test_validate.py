"""The three tests before a long run, on a tiny random model, through the study's own units."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.planning import machine
from mechstudy.planning.hardware import load_hardware
from mechstudy.planning.machine import this_machine
from mechstudy.planning.opened_study import OpenedStudy, open_study
from mechstudy.planning.plan import make_plan
from mechstudy.runner import validate as validating
from mechstudy.runner.pilots import PilotRuns
from mechstudy.runner.validate import validate
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.slow  # whole studies


@pytest.fixture(scope="module", autouse=True)
def only_the_models_widths():
    """Wide products in bfloat16 take minutes where the CPU has no instructions for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "WIDTHS", (64,))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, d=16)
    return folder


def study_in(model: Path, tmp_path: Path) -> OpenedStudy:
    pairs = []
    for i in range(8):
        pair = {"id": f"p{i}", "template": "t", "group": f"g{i}", "clean": f"abc {i}", "corrupted": f"abd {i}"}
        pairs.append(pair | {"answer": "x", "wrong_answer": "y", "split": "train" if i % 2 else "test"})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "text.txt").write_text("".join(f"A line of text, number {i}, of some length.\n\n" for i in range(400)))
    (tmp_path / "study.yaml").write_text(
        "name: tiny\n"
        f"model: {{source: 'path:{model}'}}\n"
        "behaviours: [{name: mine, file: prompts.jsonl, n_train: 4, n_test: 4}]\n"
        "corpus: {source: 'text:text.txt', tokens: 4096, held_out_tokens: 1024, context: 32}\n"
        "dictionaries: {layers: all, evaluation_rows: 256, evaluation_tokens: 128}\n"
        "attribution: {n_prompts: 2, max_features: 20}\n"
        "features: {documents: 8, per_behaviour: 4}\n"
        "verdict: {n_samples: 8, n_discovery: 8, steps: 2, n_random: 2, resamples: 20, bootstrap: 100}\n"
        "interventions: {n_samples: 4, n_groups: 1, group_size: 2, n_controls: 1, bootstrap: 100, permutations: 99}\n"
        "compute: {device: cpu, threads: 1}\n"
    )
    return open_study(tmp_path / "study.yaml", out=tmp_path / "run")


@pytest.fixture
def opened(model, tmp_path) -> OpenedStudy:
    return study_in(model, tmp_path)


@pytest.fixture
def no_pilots(monkeypatch):
    monkeypatch.setattr(validating, "run_pilots", lambda *_: PilotRuns([], {}))


@pytest.fixture(scope="module")
def validated(model, tmp_path_factory) -> tuple[OpenedStudy, dict]:
    """The tiny study and what validating it found."""
    opened = study_in(model, tmp_path_factory.mktemp("study"))
    return opened, validate(opened, steps=60, progress=NullProgress())


def test_the_tests_give_numbers_and_verdicts_and_leave_only_their_file(validated):
    opened, found = validated
    assert [test["name"] for test in found["tests"]] == ["memory", "speed", "convergence", "budget"]
    memory, speed, convergence, budget = found["tests"]
    assert memory["peak_rss_bytes"] > 1e6 and memory["go"]
    assert speed["prompts"] == 4 and speed["projected_seconds"] > 0
    assert convergence["d_sae"] == 64 and convergence["r2"] < 1
    assert budget["failed"] == {} and 0 < budget["low"] < budget["seconds"] < budget["high"]
    fits = found["calibration"]["fits"]
    assert {"model", "baseline", "capture corpus", "train", "attribute", "intervene", "report"} <= set(fits)
    assert fits["train"]["n"] >= 2 and fits["train"]["factor"] > 0
    assert found["go"] == all(test["go"] for test in found["tests"])
    assert json.loads((opened.folder / "validate.json").read_text()) == found
    assert sorted(path.name for path in opened.folder.iterdir()) == ["lock", "validate.json"]


def test_a_poor_r2_is_a_no_go(opened, no_pilots, monkeypatch):
    monkeypatch.setattr(validating, "MIN_R2", 1.1)
    found = validate(opened, steps=5, progress=NullProgress())
    assert not found["go"] and not found["tests"][2]["go"]


def test_a_test_that_cannot_run_raises_the_study_s_own_error(opened, no_pilots):
    row = {"corrupted": "Two more cats", "answer": " a", "wrong_answer": " b"}
    rows = [row | {"clean": "One cat", "split": "train"}, row | {"clean": "A cat", "split": "test"}]
    (opened.file.parent / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    broken = open_study(opened.file, out=opened.folder)
    with pytest.raises(MechstudyError, match="2 of 2 lines are broken"):  # only a tokenizer can see it
        validate(broken, steps=5, progress=NullProgress())


def test_the_plan_goes_by_the_pilots_and_names_them(validated):
    opened, _ = validated
    plan = make_plan(opened.evaluate(), opened.folder, opened.options)
    assert plan.calibration is not None and plan.calibration.finished.startswith("20")
    fits = plan.calibration.fits
    trained = [row for row in plan.rows if row.phase == "train"]
    assert [row.spread for row in trained] == [fits["train"].spread] * 3
    model = next(row for row in plan.rows if row.unit == "model")
    assert model.seconds is not None and model.seconds < 60
    elsewhere = make_plan(opened.evaluate(), opened.folder, opened.options, hardware=load_hardware("a100-80gb"))
    assert elsewhere.calibration is None, "pilots of this machine say nothing of another"


def test_pilots_of_what_a_study_cannot_do_name_it(opened, tmp_path, monkeypatch):
    from mechstudy.runner import pilots

    def refuse(*_):
        raise MechstudyError("these graphs cannot be made")

    monkeypatch.setattr("mechstudy.study.phases.attribute.AttributePhase.run", refuse)
    found = pilots.run_pilots(opened, tmp_path / "pilots", this_machine("cpu", 1), NullProgress())
    assert "these graphs cannot be made" in found.failed["attribute[mine]"]
    assert found.failed["intervene[mine]"] == "waits for attribute[mine]"
    assert {run.unit.phase.name for run in found.runs} >= {"model", "train", "capture"}


def test_a_study_of_dictionaries_alone_is_validated_on_rows_of_its_corpus(opened, tmp_path):
    overrides = ["behaviours=[]", "dictionaries.architecture={kind: sae, k: 4}", "dictionaries.layers=[1]"]
    alone = open_study(opened.file, overrides, out=tmp_path / "alone")
    found = validate(alone, steps=5, progress=NullProgress())
    speed = next(test for test in found["tests"] if test["name"] == "speed")
    assert speed["prompts"] == 10 and speed["tokens"] == 160
    budget = next(test for test in found["tests"] if test["name"] == "budget")
    assert budget["failed"] == {}, budget


@pytest.mark.parametrize(
    ("source", "steps", "tokens"),
    [("bundled", 1000, 393_216), ("bundled", 60, 60 * 2048), ("text:text.txt", 60, 4096), ("text:text.txt", 1, 4096)],
)
def test_the_corpus_is_as_long_as_the_steps_read_and_no_longer(opened, tmp_path, source, steps, tokens):
    study = open_study(opened.file, [f"corpus.source={source}"], out=opened.folder)
    small = validating.small_study(study, 1, steps, tmp_path / "scratch")
    assert small.study.corpus.tokens == tokens
