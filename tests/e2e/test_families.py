"""A small study of every family of the table, from a model's files to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mechstudy as ms
from tests.support.tiny import ALL, save_tiny

pytestmark = pytest.mark.slow

STUDY = """\
name: tiny
model: {source: 'path:model'}
behaviours: [{name: letters, file: letters.jsonl}]
baseline: {on_fail: continue, bootstrap: 100}
capture: {layers: all, positions: last-2}
corpus: {source: 'text:text.txt', tokens: 2048, held_out_tokens: 512, context: 32}
dictionaries:
  layers: all
  model_dtype: bfloat16
  evaluation_rows: 256
  evaluation_tokens: 128
  architecture: {kind: skip_transcoder, activation: topk, d_sae: 64, k: 4}
  training: {steps: 10, batch_size: 128, precision: float32, tensorboard: false}
attribution: {n_prompts: 2, max_features: 30}
features: {documents: 4, per_behaviour: 4}
verdict: {n_samples: 8, n_discovery: 8, steps: 2, n_random: 2, resamples: 20, bootstrap: 100}
interventions:
  n_samples: 2
  n_groups: 1
  group_size: 2
  n_controls: 1
  resample_draws: 1
  alphas: [-1, 1]
  n_edges: 4
  patching: {layers: "1", n_pairs: 1}
  bootstrap: 100
  permutations: 99
compute: {device: cpu, threads: 1, monitor: false}
"""


def write_study(folder: Path, family: str) -> Path:
    save_tiny(folder / "model", family, n_layers=2)
    rows = [
        {"clean": f"{a} then {a}", "corrupted": f"{a} then {b}", "answer": "x", "wrong_answer": "y", "split": split}
        for a, b, split in (("a", "b", "train"), ("b", "c", "train"), ("c", "d", "test"), ("d", "a", "test"))
    ]
    (folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text("".join(f"A line of text, number {i}, of some length.\n\n" for i in range(300)))
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


@pytest.mark.parametrize("family", ALL)
def test_a_small_study_of_a_family_runs_to_the_report(family, tmp_path):
    ms.Study.load(write_study(tmp_path, family), out=tmp_path / "run").run()  # raises where a unit fails
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {unit["status"] for unit in summary["units"].values()} == {"done"}
    graphs = summary["graphs"]["letters"]
    assert graphs["n_prompts"] == 2 and graphs["conservation_residual_max"] <= 1e-4
