"""Peak memory and seconds of live gradients with and without checkpoints: `python -m benchmarks.checkpointing`.

A model of SmolLM2-135M's shape with random weights (nothing is downloaded); each measurement is a process of its own,
and its peak is what the forward and backward passes add to what the loaded model takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip


def measure(setting: str, n_tokens: int, device: str) -> dict[str, float]:
    """Of one prompt of so many tokens, every layer's gradient wanted."""
    import torch
    import transformers

    from mechstudy.behaviours.contrast import Contrast
    from mechstudy.circuits.live import explained_gradients
    from mechstudy.circuits.targets import AnswerContrast
    from mechstudy.machine.memory import peak_rss_bytes, reset_peak_rss
    from mechstudy.models.families import family_of
    from mechstudy.models.graph_memory import graph_bytes
    from mechstudy.models.language_model import LanguageModel
    from mechstudy.models.sites import Site

    torch.manual_seed(0)
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, attn_implementation="sdpa")).to(device)
    model = LanguageModel(hf, None, family_of("llama"), "smollm2-135m's shape")
    tokens = torch.randint(0, 49152, (n_tokens,), device=device)
    explained = AnswerContrast(Contrast((1,), (2,)))
    explained_gradients(model, tokens[:8], explained, [Site("mlp_out", 0)], "off")
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        reset_peak_rss()
        before = peak_rss_bytes()
    began = time.perf_counter()
    sites = [Site("mlp_out", layer) for layer in range(model.n_layers)]
    found = explained_gradients(model, tokens, explained, sites, setting)
    checksum = sum(float(g.double().abs().sum()) for g in found.values())
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_rss_bytes()
    return {
        "tokens": n_tokens, "seconds": seconds, "added_bytes": peak - before,
        "estimate_bytes": graph_bytes(model, 1, n_tokens), "checksum": checksum,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.tokens[0], options.device)))
        return
    for n_tokens in options.tokens:
        for setting in ("off", "on"):
            command = [sys.executable, "-m", "benchmarks.checkpointing", "--one", setting, "--device", options.device]
            done = subprocess.run([*command, "--tokens", str(n_tokens)], check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{n_tokens:5} tokens, checkpointing {setting:3}: {found['added_bytes'] / 2**20:7.0f} MiB more, "
                f"{found['seconds']:6.2f} s (estimate without: {found['estimate_bytes'] / 2**20:.0f} MiB; "
                f"checksum {found['checksum']!r})",
                flush=True,
            )


if __name__ == "__main__":
    main()
