"""auto-circuit's edges and TransformerLens' patching of a known circuit: torch, transformers and the two libraries.

Reads a folder of `benchmarks.known_circuits`: a GPT-2 model (config.json, model.safetensors) and pairs.json. Prints a
line of JSON for each method: its seconds, and the score of each node (by pair) or edge.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from math import isinf
from pathlib import Path
from typing import Any

import torch
from auto_circuit.data import PromptPair, PromptPairBatch, collate_fn
from auto_circuit.prune_algos.ACDC import acdc_prune_scores
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.utils.graph_utils import patchable_model
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2Config, GPT2LMHeadModel

STEPS = 5


def load(folder: Path) -> tuple[HookedTransformer, Any]:
    config = GPT2Config.from_json_file(str(folder / "config.json"))
    hf = GPT2LMHeadModel(config).double().eval()
    hf.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    cfg = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        d_head=config.n_embd // config.n_head,
        n_heads=config.n_head,
        d_mlp=config.n_inner,
        d_vocab=config.vocab_size,
        act_fn="relu",
        normalization_type="LN",
        eps=config.layer_norm_epsilon,
        dtype=torch.float64,
        device="cpu",
    )
    model = HookedTransformer(cfg)
    model.load_state_dict(convert_gpt2_weights(hf, cfg), strict=False)
    model.set_use_attn_result(True)
    model.set_use_attn_in(True)
    model.set_use_hook_mlp_in(True)
    return model, hf


def batches_of(pairs: list[dict[str, Any]], together: bool) -> list[PromptPairBatch]:
    """Each pair alone, or all of the commonest length at once."""
    made = [PromptPair(*(torch.tensor(pair[k]) for k in ("clean", "corrupted", "right", "wrong"))) for pair in pairs]
    if not together:
        return [collate_fn([pair]) for pair in made]
    lengths = [len(pair.clean) for pair in made]
    commonest = max(sorted(set(lengths)), key=lengths.count)
    return [collate_fn([pair for pair in made if len(pair.clean) == commonest])]


def edges(model: HookedTransformer, method: Callable[..., Any], batches: list[PromptPairBatch]) -> dict[str, float]:
    patchable = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=False)
    scores = method(patchable, batches)
    sizes = {f"{edge.src.name} -> {edge.dest.name}": abs(float(edge.prune_score(scores))) for edge in patchable.edges}
    # ACDC gives infinity to what it keeps at every threshold, of which the largest is .09.
    return {name: 1.0 if isinf(size) else size for name, size in sizes.items()}


def nodes(model: HookedTransformer, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contrast when each head's or MLP's output at a token is that of the corrupted prompt."""
    rows = []
    for pair in pairs:
        clean, corrupted = (torch.tensor([pair[name]]) for name in ("clean", "corrupted"))
        with torch.no_grad():
            _, cache = model.run_with_cache(corrupted)

            def contrast(logits: torch.Tensor, pair: dict[str, Any] = pair) -> torch.Tensor:
                return logits[0, -1, pair["right"][0]] - logits[0, -1, pair["wrong"][0]]

            whole = contrast(model(clean))
            heads = patching.get_act_patch_attn_head_out_by_pos(model, clean, cache, contrast) - whole
            mlps = patching.get_act_patch_mlp_out(model, clean, cache, contrast) - whole
        rows.append({"heads": heads.tolist(), "mlps": mlps.tolist()})
    return rows


def main() -> None:
    torch.set_default_dtype(torch.float64)
    folder = Path(sys.argv[1])
    pairs = json.loads((folder / "pairs.json").read_text())
    model, hf = load(folder)
    for pair in pairs:
        tokens = torch.tensor([pair["clean"]])
        torch.testing.assert_close(model(tokens), hf(tokens).logits, rtol=1e-9, atol=1e-9)
    began = time.perf_counter()
    print(
        json.dumps(
            {"method": "TransformerLens patching", "nodes": nodes(model, pairs), "seconds": time.perf_counter() - began}
        )
    )
    gradient: dict[str, Any] = {"grad_function": "logit", "answer_function": "avg_diff", "official_edges": None}
    methods = {
        "auto-circuit eap": (lambda m, b: mask_gradient_prune_scores(m, b, mask_val=0.0, **gradient), False),
        "auto-circuit ig": (
            lambda m, b: mask_gradient_prune_scores(m, b, integrated_grad_samples=STEPS, **gradient),
            False,
        ),
        "auto-circuit acdc": (lambda m, b: acdc_prune_scores(m, b, None), True),
    }
    for name, (method, together) in methods.items():
        model, _ = load(folder)
        began = time.perf_counter()
        found = edges(model, method, batches_of(pairs, together))
        print(json.dumps({"method": name, "edges": found, "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
