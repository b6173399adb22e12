"""A study small enough for a cluster of one node: a random model of four layers, two behaviours, every phase."""

from __future__ import annotations

import json
from pathlib import Path

BEHAVIOURS = ("letters", "digits")
ONE_BEHAVIOUR = "behaviours=[{name: letters, file: letters.jsonl}]"  # an override
_TEXT = """\
name: {name}
model: {{source: '{source}'}}
behaviours:
  - {{name: letters, file: letters.jsonl}}
  - {{name: digits, file: digits.jsonl, strict: true}}
baseline: {{on_fail: continue, bootstrap: 100}}
capture: {{layers: 0-3, positions: last-2}}
corpus: {{source: 'text:text.txt', tokens: 4096, held_out_tokens: 1024, context: 32}}
dictionaries:
  layers: 0-3
  evaluation_rows: 256
  evaluation_tokens: 128
  architecture: {{kind: skip_transcoder, activation: batchtopk, d_sae: 64, k: 4}}
  training: {{steps: 200, batch_size: 128, precision: float32, tensorboard: false, checkpoint_every: 20}}
attribution: {{n_prompts: 2, max_features: 50}}
features: {{documents: 8, per_behaviour: 5}}
verdict: {{n_samples: 8, n_discovery: 8, steps: 2, n_random: 2, resamples: 20, bootstrap: 100}}
interventions:
  n_samples: 4
  n_groups: 1
  group_size: 2
  n_controls: 1
  resample_draws: 1
  alphas: [-1, 1]
  n_edges: 5
  patching: {{layers: "1,3", n_pairs: 2}}
  bootstrap: 100
  permutations: 99
compute: {{device: cpu, threads: 1, slurm: {{cpus: 1, memory: 900M, signal_lead: 58}}}}
"""


def write_study(folder: Path, model: Path | str, name: str = "tiny") -> Path:
    """Writes a study's folder and returns its file. The same files wherever it lies, so the same artifacts too.

    Args:
        model: the model's folder, or a source of a model elsewhere.
    """
    folder.mkdir(parents=True)
    if isinstance(model, Path):
        (folder / "model").symlink_to(model, target_is_directory=True)
    for behaviour, alphabet in zip(BEHAVIOURS, ("abcdefgh", "12345678"), strict=True):
        (folder / f"{behaviour}.jsonl").write_text(prompts(alphabet))
    (folder / "text.txt").write_text("".join(f"A line of text, number {i}, of some length.\n\n" for i in range(400)))
    file = folder / "study.yaml"
    source = "path:model" if isinstance(model, Path) else model
    file.write_text(_TEXT.format(name=name, source=source))
    return file


def prompts(alphabet: str) -> str:
    """Eight pairs that differ in one character, half of them for training."""
    rows = [
        {
            "clean": f"{character} then {character}",
            "corrupted": f"{character} then {other}",
            "answer": "x",
            "wrong_answer": "y",
            "group": f"g{number}",
            "split": "train" if number % 2 else "test",
        }
        for number, (character, other) in enumerate(zip(alphabet, alphabet[1:] + alphabet[:1], strict=True))
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def save_model(folder: Path) -> None:
    """Writes the random model, the same weights every time."""
    from tests.support.tiny import save_tiny

    save_tiny(folder, n_layers=4)
