"""A study of a tiny random model with files of its own, small enough to run every phase of it in a test."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from mechstudy.planning.opened_study import open_study
from mechstudy.study.unit import Unit
from tests.support.tiny import save_tiny


def write_study(folder: Path, *, n_prompts: int = 5, tokens: int = 4096, steps: int = 30, d: int = 16) -> Path:
    """Model, prompts, text and the study file itself, whose path is returned."""
    save_tiny(folder / "model", d=d)
    row = {"answer": "x", "wrong_answer": "y"}
    pairs = [
        row
        | {
            "clean": f"abc {'d' * (i % 3)}{i}",
            "corrupted": f"abe {'d' * (i % 3)}{i}",
            "split": ("train", "test")[i % 2],
        }
        for i in range(2 * n_prompts)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "text.txt").write_text(
        "".join(f"A line of text, number {i}, of some length.\n\n" for i in range(400 + tokens // 20))
    )
    (folder / "study.yaml").write_text(
        "name: tiny\n"
        "model: {source: 'path:model'}\n"
        f"behaviours: [{{name: mine, file: prompts.jsonl, n_train: {n_prompts}, n_test: {n_prompts}}}]\n"
        "baseline: {on_fail: continue, bootstrap: 100}\n"
        "capture: {layers: 0-2, positions: last-2}\n"
        f"corpus: {{source: 'text:text.txt', tokens: {tokens}, held_out_tokens: 1024, context: 32}}\n"
        "dictionaries:\n"
        "  layers: 0-1\n"
        "  model_dtype: float32\n"
        "  evaluation_rows: 256\n"
        "  evaluation_tokens: 128\n"
        "  architecture: {kind: skip_transcoder, activation: batchtopk, d_sae: 32, k: 4}\n"
        f"  training: {{steps: {steps}, batch_size: 128, precision: float32, tensorboard: false,"
        " checkpoint_every: 10}\n"
        f"attribution: {{n_prompts: {n_prompts}, max_features: 40}}\n"
        "verdict: {steps: 2, n_random: 2, resamples: 20, bootstrap: 100}\n"
        "storage: {activations: keep}\n"
        "compute: {device: cpu, threads: 1, batch_tokens: 64}\n"
    )
    return folder / "study.yaml"


def published_study(folder: Path, name: str, **dictionaries: object) -> Path:
    """The study of `write_study` under another name, with these fields of `dictionaries` in place of a training."""
    config = yaml.safe_load((folder / "study.yaml").read_text())
    kept = {key: config["dictionaries"][key] for key in ("model_dtype", "evaluation_rows", "evaluation_tokens")}
    config["dictionaries"] = kept | dictionaries
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config | {"name": name}))
    return file


def units_of(file: Path) -> dict[str, Unit]:
    """The units of a study's plan, by name."""
    return {unit.name: unit for unit in open_study(file).units}
