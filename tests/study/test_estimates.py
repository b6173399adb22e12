"""Estimates of units against the specification's own numbers and against files that are really written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.dictionaries.config import DictionaryConfig
from mechstudy.dictionaries.sizes import file_bytes
from mechstudy.models.known import known_config
from mechstudy.models.shapes import ModelShapes, shapes_of
from mechstudy.study.costs import Costs
from mechstudy.study.study import Study
from mechstudy.study.unit import Unit
from mechstudy.study.units import build_units

# The specification's section 2: layers 10-24, the last 5 tokens, MLP outputs, 80 prompts, 4x dictionaries.
SPECIFICATION = {
    "name": "specification",
    "model": {"source": "hf:Qwen/Qwen2.5-3B-Instruct"},
    "behaviours": [{"name": "subject_verb_agreement", "n_train": 80, "n_test": 80}],
    "capture": {"layers": "10-24", "sites": ["mlp_out"], "positions": "last-5", "versions": ["clean"]},
    "corpus": {"tokens": 1_000_000},
    "dictionaries": {
        "layers": "10-24",
        "site": "mlp_out",
        "architecture": {"kind": "sae", "activation": "topk", "expansion": 4},
        "training": {"steps": 50_000, "batch_size": 256, "checkpoint_every": 5_000},
    },
}


def shapes(repo: str) -> ModelShapes:
    config = known_config(repo)
    assert config is not None
    return shapes_of(config)


def units(repo: str = "Qwen/Qwen2.5-3B", **changes) -> dict[str, Unit]:
    study = Study.model_validate(SPECIFICATION | changes)
    return {unit.name: unit for unit in build_units(study, shapes(repo), "f", Path())}


@pytest.mark.parametrize(("repo", "width"), [("Qwen/Qwen2.5-3B", 2048), ("Qwen/Qwen2.5-7B", 3584)])
def test_captured_files_are_layers_x_tokens_x_width_x_2_bytes_x_prompts(repo, width):
    capture = units(repo)["capture[subject_verb_agreement]"].estimate
    rows = {name: size for name, size in capture.payload.items() if name.endswith(".bin") and "mlp_out" in name}
    activations = sum(size for name, size in rows.items() if "norms" not in name)
    assert capture.exact
    assert activations == 15 * 5 * width * 2 * 80
    if width == 3584:
        assert activations == 80 * 537_600, "the specification's 537,600 bytes per prompt"


def test_weights_of_qwen_3b_are_12_3_and_6_2_gb():
    model = units()["model"].estimate
    assert model.holds[0].count == 3_085_938_688
    assert round(model.holds[0].bytes() / 1e9, 1) == 12.3
    assert round(model.holds[0].count * 2 / 1e9, 1) == 6.2


def test_a_dictionary_of_the_specification_has_its_two_matrices_of_206_mb():
    train = units("Qwen/Qwen2.5-7B")["train[15]"].estimate
    [size] = train.payload.values()
    matrices = 2 * 4 * 3584 * 14_336
    assert matrices == 411_041_792
    assert 0 < size - matrices < 100_000, "and biases"
    assert len([name for name in units() if name.startswith("train[")]) == 15


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip_transcoder"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_a_dictionary_s_file_has_exactly_the_planned_bytes(tmp_path, kind, activation):
    import torch

    from mechstudy.dictionaries.dictionary import Dictionary
    from mechstudy.dictionaries.stored import DictionaryMeta, expected_shapes

    d_in, d_out = 8, 8 if kind == "sae" else 12
    written_as = "topk" if activation == "topk" else "jumprelu"
    meta = DictionaryMeta(kind, written_as, d_in, d_out, 32, 4, "mlp_in.0", "mlp_out.0")
    Dictionary(meta, **{name: torch.zeros(s) for name, s in expected_shapes(meta).items()}).save(tmp_path)
    config = DictionaryConfig(kind=kind, activation=activation, d_sae=32, k=4)
    assert (tmp_path / "sae_weights.safetensors").stat().st_size == file_bytes(config, 32, d_in, d_out)


def test_streamed_dictionaries_leave_only_judging_to_their_own_unit():
    stored = units()["train[15]"].estimate
    streamed = units(dictionaries=SPECIFICATION["dictionaries"] | {"source": "stream"})
    assert streamed["train[15]"].estimate.flops < stored.flops
    assert streamed["stream[10-19]"].estimate.flops > 10 * stored.flops


def test_more_of_everything_takes_more():
    def flops(phase: str, **changes) -> float:
        return sum(unit.estimate.flops for unit in units(**changes).values() if unit.phase.name == phase)

    graphs = {"dictionaries": SPECIFICATION["dictionaries"] | {"architecture": {"kind": "transcoder", "expansion": 4}}}
    twice = flops("attribute", attribution={"n_prompts": 32}, **graphs)
    assert twice == pytest.approx(2 * flops("attribute", **graphs))
    assert flops("intervene", interventions={"n_samples": 10}, **graphs) < flops("intervene", **graphs)
    assert flops("capture", corpus={"tokens": 2_000_000}) > 1.9 * flops("capture")
    bigger = SPECIFICATION["dictionaries"] | {"architecture": {"kind": "sae", "expansion": 8}}
    assert flops("train", dictionaries=bigger) == pytest.approx(2 * flops("train"), rel=0.01)


def test_training_memory_at_the_specifications_shape_is_as_measured():
    """docs/explanation/benchmarks.md, Memory: 2.01 GB, and 0.3 more while the finished dictionary is handed back."""
    study = Study.model_validate(SPECIFICATION)
    cost = Costs(study, shapes("Qwen/Qwen2.5-7B"), {}).dictionary()
    assert cost.memory == pytest.approx(2.31e9, rel=0.05)


def test_a_corpus_of_the_models_own_text_costs_a_forward_pass_for_each_sampled_token():
    read, own = (
        units(corpus={"source": source, "tokens": 128_000, "held_out_tokens": 3072, "context": 128})["corpus"].estimate
        for source in ("bundled", "self")
    )
    assert own.exact and (own.bytes_on_disk, own.payload, own.shapes) == (read.bytes_on_disk, read.payload, read.shapes)
    x = shapes("Qwen/Qwen2.5-3B")
    tokens = 4 * 256 * 127  # 1,024 rows in whole batches, without their first token
    least = 2 * tokens * (x.n_block_parameters + x.vocab_size * x.d_model)
    assert read.flops == 0 and least < own.flops < 1.2 * least
    weights, logits = own.holds[0].bytes(), 4 * 256 * x.vocab_size
    assert own.holds[0].dtype == "bfloat16" and own.bytes_in_memory > weights + logits
    assert "4 batches" in own.note
