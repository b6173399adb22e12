"""Ten dictionaries from one pass over a store, against the sum of their training steps alone.

The steps alone are timed on batches in memory; the pass is timed with everything: reading, statistics of the first
batches, initial weights. A first round is not counted, since it compiles. Bytes of a dictionary are compared with
single training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.contenders import write
from benchmarks.peers import HERE
from mechstudy.activations.multi_site_batches import StoreBatches
from mechstudy.activations.store import Store
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.progress import NullProgress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.train_many import Job, View, train_many
from mechstudy.dictionaries.training.trainer import Training, train
from mechstudy.models.sites import Site


def make(folder: Path, layers: int, n_rows: int, width: int) -> Store:
    sites = [Site("mlp_out", layer) for layer in range(layers)]
    writer = StoreWriter(folder, dict.fromkeys(sites, width), n_rows, "bfloat16", seed=0)
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(4 * width, width, generator=draw) / width**0.5
    for first in range(0, n_rows, 8192):
        n = min(8192, n_rows - first)
        on = torch.rand(n, 4 * width, generator=draw)
        rows = (on * (on > 0.99)) @ features
        numbers = np.arange(first, first + n, dtype=np.int32)
        writer.put(first, dict.fromkeys(sites, rows), numbers // 128, numbers % 128, torch.from_numpy(numbers))
    return writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "one_pass.json")
    a = parser.parse_args()
    cfg = DictionaryConfig(kind="sae", activation="batchtopk", expansion=4, k=48)
    recipe = TrainConfig(steps=a.steps, batch_size=a.batch, tensorboard=False, precision="float32", log_every=10)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make(folder / "store", a.layers, (a.steps + 12) * a.batch, a.width)
        sites = [Site("mlp_out", layer) for layer in range(a.layers)]
        jobs = [Job(str(site), cfg, recipe, str(site), str(site), folder / str(site)) for site in sites]
        ratios = []
        for number in range(a.rounds + 1):
            alone = 0.0
            for site in sites:
                view = View(StoreBatches(store, [site], a.batch), str(site), str(site))
                batches = list(islice(view.batches(), a.steps))
                training = Training(cfg, recipe, view, site_in=str(site), site_out=str(site), out=folder / "alone")
                training.begin(iter(batches), NullProgress())
                began = time.perf_counter()
                with training:
                    for x, y in batches:
                        training.take(x, y)
                alone += time.perf_counter() - began
            source = StoreBatches(store, sites, a.batch)
            began = time.perf_counter()
            together = train_many(jobs, source)
            seconds = time.perf_counter() - began
            if number == 0:
                continue
            ratios.append(seconds / alone)
            print(f"alone {alone:.1f}s, one pass {seconds:.1f}s: {ratios[-1]:.3f}", flush=True)
        site = str(sites[-1])
        single = train(cfg, recipe, View(StoreBatches(store, sites, a.batch), site, site), site_in=site, site_out=site)
        equal = torch.equal(single.W_dec, together[site].W_dec) and torch.equal(single.W_enc, together[site].W_enc)
        print(f"median {statistics.median(ratios):.3f}; equal to single training: {equal}")
    options = {"layers": a.layers, "steps": a.steps, "width": a.width, "batch": a.batch}
    write(a.out, options=options, ratios=ratios, median=statistics.median(ratios), equal=equal)


if __name__ == "__main__":
    main()
