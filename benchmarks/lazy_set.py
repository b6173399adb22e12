"""Peak memory of an attribution graph from a lazily loaded set: 16 layers of 65,536 features, width 2,048, random.

A random float32 set is written in circuit-tracer's layout (17.2 GB at full size; ``--features`` shrinks it), and a
process of its own makes the graph of one random prompt on a random Llama of the same width. Its peak resident memory
(ru_maxrss), which counts mapped pages of files too, is set against the whole set's bytes: the bar is a quarter. With
``--whole``, the set is loaded whole instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tests.support.tiny import tiny_tokenizer

from benchmarks.contenders import write
from benchmarks.memory import peak_gb
from benchmarks.peers import HERE
from mechstudy.circuits.attribution import attribute
from mechstudy.circuits.config import AttributionConfig
from mechstudy.dictionaries.loading import load_dictionaries
from mechstudy.models.families import family_of
from mechstudy.models.language_model import LanguageModel

BAR = 0.25
K = 32


def write_set(folder: Path, n_layers: int, n_features: int, width: int) -> float:
    """Write the layers, and return their size in GB."""
    generator = torch.Generator().manual_seed(0)
    text = (
        f"model_kind: transcoder_set\nmodel_name: random\nfeature_input_hook: mlp.hook_in\nactivation: topk\nk: {K}\n"
    )
    (folder / "config.yaml").write_text(text + "feature_output_hook: hook_mlp_out\n")
    for layer in range(n_layers):
        t = {name: torch.randn(n_features, width, generator=generator) / width**0.5 for name in ("W_enc", "W_dec")}
        save_file(
            t | {"b_enc": torch.zeros(n_features), "b_dec": torch.zeros(width)}, folder / f"layer_{layer}.safetensors"
        )
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9


def random_model(n_layers: int, width: int) -> LanguageModel:
    """A Llama with narrow MLPs: the model is small beside the set."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tiny_tokenizer().vocab_size, hidden_size=width, intermediate_size=width // 8,
        num_hidden_layers=n_layers, num_attention_heads=16, num_key_value_heads=4,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    hf = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    return LanguageModel(hf, tiny_tokenizer(), family_of("llama"), "random")


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Make the graph here."""
    model = random_model(a.layers, a.width)
    tokens = torch.arange(a.tokens) % 16
    before, start = peak_gb(), time.perf_counter()
    dicts = load_dictionaries(a.folder, lazy=not a.whole)
    opened = time.perf_counter() - start
    graph = attribute(model, dicts, tokens, AttributionConfig(max_features=a.max_features), answer=1, wrong_answer=2)
    return {
        "before_gb": before, "peak_gb": peak_gb(), "open_s": opened, "graph_s": time.perf_counter() - start - opened,
        "n_features": graph.index.n_features, "rows": len(graph.column_R),
        "ledger": float(graph.conservation_residual_max()),
    }  # fmt: skip


def main() -> None:
    """Write the set, measure in a process of its own, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--width", type=int, default=2_048)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--max-features", type=int, default=512)
    parser.add_argument("--whole", action="store_true", help="load every layer whole, for comparison")
    parser.add_argument("--scratch", type=Path, help="where the set is written; default: the temporary folder")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the process that measures
    a = parser.parse_args()
    if a.folder:
        print(json.dumps(measure(a)))
        return
    folder = Path(tempfile.mkdtemp(prefix="mechstudy-lazy-", dir=a.scratch))
    try:
        size = write_set(folder, a.layers, a.features, a.width)
        command = [sys.executable, "-m", "benchmarks.lazy_set", *sys.argv[1:], "--folder", str(folder)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
    finally:
        shutil.rmtree(folder)
    result = json.loads(answer.splitlines()[-1]) | {"set_gb": size}
    result["share"] = result["peak_gb"] / size
    result["share_above_model"] = (result["peak_gb"] - result["before_gb"]) / size
    print(json.dumps(result, indent=1))
    full = (a.layers, a.features, a.width) == (16, 65_536, 2_048)
    if full and not a.whole:
        write(HERE / "results" / "lazy_set.json", bar=BAR, **result)


if __name__ == "__main__":
    main()
