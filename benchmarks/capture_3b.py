"""The specification's capture at the real shape of Qwen2.5-3B, on random weights.

Does it complete, are sizes exact, and is its peak memory what the plan says? Builds the model once (bfloat16, 6.2 GB in
build/, shard by shard), then captures in a process of its own: layers 10-24, the last 5 tokens, MLP outputs, 80
prompts, bfloat16. Needs about 8 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.tiny import tiny_tokenizer

from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.activations.config import Positions
from mechstudy.activations.prompt_capture import capture_prompts
from mechstudy.behaviours.registry import behaviour
from mechstudy.core.progress import NullProgress
from mechstudy.core.sizes import human
from mechstudy.machine.memory import peak_rss_bytes, reset_peak_rss
from mechstudy.machine.runtime_options import RunOptions
from mechstudy.models.known import known_config
from mechstudy.models.loading import load_folder
from mechstudy.models.shapes import shapes_of
from mechstudy.models.sites import Site
from mechstudy.planning.machine import this_machine
from mechstudy.planning.plan import make_plan
from mechstudy.runner.run import Run
from mechstudy.study.study import Study
from mechstudy.study.units import build_units

MODEL = HERE.parent / "build" / "qwen2.5-3b-random"
REPO = "Qwen/Qwen2.5-3B-Instruct"
LAYERS, TOKENS, PROMPTS = range(10, 25), 5, 80
LAYERS_PER_SHARD = 6
BAR = 0.15


def build(folder: Path) -> None:
    """Random weights of the real shape; holds one shard in memory at a time."""
    config = dict(known_config(REPO) or {})
    d, ff, n = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = config["num_key_value_heads"] * d // config["num_attention_heads"]
    block = {
        "self_attn.q_proj.weight": (d, d), "self_attn.q_proj.bias": (d,),
        "self_attn.k_proj.weight": (keys, d), "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, d), "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (d, d),
        "mlp.gate_proj.weight": (ff, d), "mlp.up_proj.weight": (ff, d), "mlp.down_proj.weight": (d, ff),
        "input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,),
    }  # fmt: skip
    shards: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    ]
    for first in range(0, n, LAYERS_PER_SHARD):
        layers = range(first, min(n, first + LAYERS_PER_SHARD))
        shards.append({f"model.layers.{i}.{name}": shape for i in layers for name, shape in block.items()})
    folder.mkdir(parents=True, exist_ok=True)
    draw, where = torch.Generator().manual_seed(0), {}
    for number, shapes in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: _weights(key, shape, draw) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        print(f"wrote {name}", flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    tiny_tokenizer().save_pretrained(folder)
    extra = {"architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config | extra))


def _weights(name: str, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.randn(shape, generator=draw).mul_(0.02).to(torch.bfloat16)


def measure(model_folder: Path, out: Path) -> dict[str, Any]:
    """Capture here; peaks are of this process."""
    base = peak_rss_bytes()
    began = time.perf_counter()
    model = load_folder(model_folder, dtype="bfloat16")
    loaded, loading = time.perf_counter() - began, peak_rss_bytes()
    reset_peak_rss()
    pairs = behaviour("subject_verb_agreement").generate(FakeTokenizer(bos=False), PROMPTS, "train", 0)
    sites = [Site("mlp_out", layer) for layer in LAYERS]
    began = time.perf_counter()
    capture_prompts(
        model, pairs, sites, Positions.last(TOKENS), out, versions=("clean",), dtype="bfloat16", progress=NullProgress()
    )  # fmt: skip
    return {
        "base_bytes": base,
        "loading_peak_bytes": loading,
        "capture_peak_bytes": peak_rss_bytes(),
        "load_seconds": loaded,
        "capture_seconds": time.perf_counter() - began,
        "n_parameters": sum(p.numel() for p in model.hf.parameters()),
        "tokens": sum(len(pair.clean_tokens) for pair in pairs),
    }


def planned(folder: Path) -> tuple[dict[str, int], int]:
    """Files of the capture, name -> bytes, and its peak with the model in bfloat16, as `mechstudy plan` has them."""
    study = Study.model_validate(
        {
            "name": "capture-3b",
            "model": {"source": f"hf:{REPO}"},
            "behaviours": [{"name": "subject_verb_agreement", "n_train": PROMPTS, "n_test": PROMPTS}],
            "capture": {
                "layers": f"{LAYERS[0]}-{LAYERS[-1]}", "sites": ["mlp_out"], "positions": f"last-{TOKENS}",
                "versions": ["clean"], "splits": ["train"], "dtype": "bfloat16",
            },
        }
    )  # fmt: skip
    units = build_units(study, shapes_of(known_config(REPO) or {}), "random", folder)
    hardware = this_machine("cpu", 1)
    plan = make_plan(Run(folder, units, RunOptions(max_parallel=2), NullProgress()), hardware=hardware)
    [row] = [row for row in plan.rows if row.unit == "capture[subject_verb_agreement]"]
    return {name.removeprefix("train/"): size for name, size in row.payload.items()}, row.memory.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "capture_3b.json")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(measure(a.model, a.child)))
        return
    if not (a.model / "config.json").exists():
        build(a.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        command = [sys.executable, "-m", "benchmarks.capture_3b", "--model", str(a.model), "--child", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent, env=os.environ)
        found = json.loads(done.stdout.splitlines()[-1])
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    files, peak = planned(Path(name))
    wrong = {file: (size, sizes.get(file)) for file, size in files.items() if sizes.get(file) != size}
    activations = sum(size for file, size in sizes.items() if file.startswith("mlp_out") and "norms" not in file)
    most = max(found["loading_peak_bytes"], found["capture_peak_bytes"])
    ratio = most / peak
    print(f"parameters         {found['n_parameters']:,}")
    print(f"loading            {found['load_seconds']:.1f}s, {human(found['loading_peak_bytes'])} at the peak")
    print(f"capture            {found['capture_seconds']:.1f}s, {human(found['capture_peak_bytes'])} at the peak")
    print(f"activations        {activations:,} bytes = 15 layers x 5 tokens x 2,048 x 2 bytes x 80 prompts")
    print(f"sizes              {len(files) - len(wrong)} of {len(files)} files as planned {wrong or ''}")
    verdict = "reached" if abs(ratio - 1) <= BAR else "MISSED"
    print(f"peak / plan        {human(most)} / {human(peak)} = {ratio:.3f} (bar: within {BAR:.0%}): {verdict}")
    write(a.out, options={"model": str(a.model.name)}, found=found, planned_peak=peak, ratio=ratio, wrong=wrong,
          activations=activations)  # fmt: skip


if __name__ == "__main__":
    main()
