"""A study's dictionaries from a streamed pass: the same files as from a store, and no activations on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.progress import NullProgress
from mechstudy.planning.opened_study import open_study
from mechstudy.runner.study_run import execute
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    save_tiny(folder / "model", d=16)
    row = {"answer": "x", "wrong_answer": "y"}
    pairs = [
        row | {"clean": f"abc {i}", "corrupted": f"abd {i}", "split": s} for i, s in enumerate(["train", "test"] * 2)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "text.txt").write_text("".join(f"A line of text, number {i}, of some length.\n\n" for i in range(400)))
    (folder / "study.yaml").write_text(
        "name: tiny\n"
        "model: {source: 'path:model'}\n"
        "behaviours: [{name: mine, file: prompts.jsonl, n_train: 2, n_test: 2}]\n"
        "corpus: {source: 'text:text.txt', tokens: 4096, held_out_tokens: 1024, context: 32}\n"
        "dictionaries:\n"
        "  layers: 0-2\n"
        "  source: stream\n"
        "  window_rows: 1024\n"
        "  layers_per_pass: 2\n"
        "  evaluation_rows: 256\n"
        "  evaluation_tokens: 128\n"
        "  architecture: {kind: skip_transcoder, activation: batchtopk, d_sae: 32, k: 4}\n"
        "  training: {steps: 30, batch_size: 128, precision: float32, tensorboard: false, checkpoint_every: 10}\n"
        "compute: {device: cpu, threads: 1}\n"
    )
    return folder / "study.yaml"


def evaluations(study: Path, folder: Path, *overrides: str) -> dict[int, dict]:
    opened = open_study(study, overrides, out=folder)
    targets = [unit.name for unit in opened.units if unit.phase.name == "train"]
    result = execute(opened, targets, progress=NullProgress())
    assert result.exit_code == 0, result.failures
    return {
        int(name[6:-1]): read_json(result.unit(name).artifact.file("evaluation.json"))  # type: ignore[union-attr]
        for name in targets
    }


@pytest.mark.slow
def test_streamed_dictionaries_evaluate_like_stored_ones_without_a_store(study, tmp_path):
    streamed = evaluations(study, tmp_path / "streamed")
    stored = evaluations(study, tmp_path / "stored", "dictionaries.source=store")
    assert streamed.keys() == stored.keys() == {0, 1, 2}
    for layer, evaluation in streamed.items():
        assert evaluation.keys() == stored[layer].keys()
        assert 0.8 < stored[layer]["mixing"] <= 1 and 0 < evaluation["mixing"] <= 1
        findings = {finding["what"] for finding in evaluation["health"]}
        assert ("mixing" in findings) == (evaluation["mixing"] < 0.8)
        assert evaluation["d_sae"] == 32 and evaluation["n_eval_rows"] > 200
        assert evaluation["fvu_per_row"]["quantiles"]["0.5"] > 0 and evaluation["shrinkage"]["mean"] < 1.2
        assert abs(evaluation["r2"] - stored[layer]["r2"]) < 0.15, "the same recipe on the same text in another order"
    assert not list((tmp_path / "streamed").rglob("*.bin"))
    [first] = [path for path in (tmp_path / "streamed" / "artifacts" / "stream").glob("stream-0-1-*") if path.is_dir()]
    assert 0 < read_json(first / "pass.json")["mixing"] <= 1
    assert (first / "layers" / "1" / "dictionary" / "sae_weights.safetensors").exists()


def test_a_streamed_study_plans_no_store(study, tmp_path):
    units = {unit.name: unit for unit in open_study(study, out=tmp_path).units}
    assert {name for name in units if name.startswith(("stream", "capture"))} == {
        "stream[0-1]",
        "stream[2]",
        "capture[mine]",
    }
    assert set(units["train[2]"].sources) == {"model", "corpus", "stream[2]"}
    assert units["stream[0-1]"].estimate.bytes_in_memory > 2 * 1024 * 4 * 16


def test_a_study_stops_before_the_first_step_at_rows_it_does_not_want(study, tmp_path):
    """A window holds 33 of the 128 documents: few for a batch of 900 rows."""
    sets = ["dictionaries.training.health.mixing=stop", "dictionaries.training.batch_size=900", "dictionaries.layers=0"]
    result = execute(open_study(study, sets, out=tmp_path), ["train[0]"], progress=NullProgress())
    [failure] = result.failures
    assert failure.name == "stream[0]" and "as mixed as rows of the whole corpus" in str(failure.error)
    assert not list(tmp_path.rglob("scalars.jsonl"))
    result = execute(open_study(study, [*sets, "dictionaries.source=store"], out=tmp_path), ["train[0]"])
    assert result.exit_code == 0, "a store mixes all of them"


VARIANTS = (
    "dictionaries.variants=[{name: again}, {name: k2, architecture: {kind: transcoder, activation: topk, d_sae: 48, "
    "k: 2}}]"
)


@pytest.mark.parametrize("source", ["stream", "store"])
def test_variants_share_rows_and_are_compared_with_the_layers_own(study, tmp_path, source):
    sets = [VARIANTS, f"dictionaries.source={source}", "dictionaries.layers=1"]
    opened = open_study(study, sets, out=tmp_path)
    result = execute(opened, ["variant[1:again]", "variant[1:k2]"], progress=NullProgress())
    assert result.exit_code == 0, result.failures
    again, other = (result.unit(f"variant[1:{name}]").artifact for name in ("again", "k2"))
    assert "labels" not in read_json(again.file("agreement.json")), "of controls alone"
    assert read_json(other.file("evaluation.json"))["d_sae"] == 48 and not list(other.path.glob("variants"))
    assert read_json(other.file("agreement.json"))["n_features"] == [32, 48]
    matched = read_json(again.file("agreement.json"))["decoder"]["matched"]
    assert matched["n"] == 32 and 0 < matched["mean"] < 0.99, "another seed, so other features"
    rows = [unit.artifact for unit in result.units if unit.unit.phase.name in ("stream", "capture")]
    assert len({artifact.name for artifact in rows if artifact}) == 1


def test_variants_change_nothing_of_the_layers_own_units(study, tmp_path):
    plain, varied = (
        {unit.name: unit for unit in open_study(study, [*sets, "dictionaries.source=store"], out=tmp_path).units}
        for sets in ((), (VARIANTS,))
    )
    assert varied.keys() - plain.keys() == {
        f"variant[{layer}:{name}]" for layer in range(3) for name in ("again", "k2")
    }
    assert all(unit == varied[name] for name, unit in plain.items() if unit.phase.name not in ("verdict", "report"))
    seeds = [varied[name].spec.training.seed for name in ("train[1]", "variant[1:again]", "variant[1:k2]")]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("source", ["stream", "store"])
def test_controls_are_the_same_dictionary_with_a_frozen_part(study, tmp_path, source):
    sets = ["dictionaries.controls=frozen", f"dictionaries.source={source}", "dictionaries.layers=1"]
    opened = open_study(study, sets, out=tmp_path)
    names = [f"variant[1:frozen-{part}]" for part in ("encoder", "decoder")]
    assert [unit.name for unit in opened.units if unit.phase.name == "variant"] == names
    result = execute(opened, names, progress=NullProgress())
    assert result.exit_code == 0, result.failures
    for part, name in zip(("encoder", "decoder"), names, strict=True):
        artifact = result.unit(name).artifact
        assert read_json(artifact.file("evaluation.json"))["frozen"] == part
        labels = read_json(artifact.file("agreement.json"))["labels"]
        assert labels.keys() == {"own", "variant"}
        assert all(0 <= of["n_claimed"] <= of["n"] == 32 for of in labels.values())
    own = read_json(result.unit("train[1]").artifact.file("evaluation.json"))
    assert "frozen" not in own


@pytest.mark.parametrize(
    ("variants", "what"),
    [("[{name: a}, {name: a}]", "two variants"), ("[{name: a, architecture: {kind: sae}}]", "reads other rows")],
)
def test_variants_that_cannot_be_are_refused_at_their_place(study, tmp_path, variants, what):
    with pytest.raises(MechstudyError, match=what) as error:
        open_study(study, [f"dictionaries.variants={variants}"], out=tmp_path)
    assert "variants" in str(error.value)
