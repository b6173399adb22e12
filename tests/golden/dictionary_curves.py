"""Loss curves of short trainings, kept as JSON. `python -m tests.golden.dictionary_curves` rewrites them."""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path

import torch

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.evaluation.reconstruction import evaluate
from mechstudy.dictionaries.training.trainer import train
from tests.support.dictionary_worlds import SparseWorld

PATH = Path(__file__).with_suffix(".json")
FORMS = [
    (kind, activation) for kind in ("sae", "transcoder", "skip_transcoder") for activation in ("topk", "batchtopk")
]


def platform_name() -> str:
    """What decides the last digits: machine, vector instructions, torch version."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__.split('+')[0]}"


def curve(kind: str, activation: str) -> dict[str, list[float]]:
    """FVU at each tenth step of a fixed float32 training, and R2 and L0 on rows it has not seen."""
    source = SparseWorld(d=32, n_true=40, active=2, other_target=kind != "sae", batch_size=128)
    cfg = DictionaryConfig(kind=kind, activation=activation, d_sae=96, k=4)
    recipe = TrainConfig(steps=100, batch_size=128, lr=1e-2, tensorboard=False, precision="float32", log_every=10)
    sites = {"site_in": "mlp_out.0" if kind == "sae" else "mlp_in.0", "site_out": "mlp_out.0"}
    with tempfile.TemporaryDirectory() as folder:
        dictionary = train(cfg, recipe, source, **sites, out=Path(folder))
        lines = (Path(folder) / "scalars.jsonl").read_text().splitlines()
    scores = evaluate(dictionary, [source.batch(10_000)])
    return {"fvu": [json.loads(line)["fvu"] for line in lines], "held_out": [scores["r2"], scores["l0"]]}


def main() -> None:
    curves = {f"{kind} {activation}": curve(kind, activation) for kind, activation in FORMS}
    PATH.write_text(json.dumps({"platform": platform_name(), "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
