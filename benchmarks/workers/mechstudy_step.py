"""One contender's step time: prints a JSON line for each variant. Arguments: d F k batch steps."""

import json
import resource
import statistics
import sys
import time

import torch

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.rows import TensorRows
from mechstudy.dictionaries.training.trainer import Training

d, n_features, k, batch, steps = map(int, sys.argv[1:6])
torch.manual_seed(0)
source = TensorRows(torch.randn(8 * batch, d), batch_size=batch)


class _Silent:
    def log(self, message: str) -> None: ...


def product(dtype: torch.dtype, fresh: bool) -> float:
    """Milliseconds of the encoder's matrix product, into fresh memory (as ``x @ w`` does) or into the same again."""
    a, b = torch.randn(batch, d).to(dtype), torch.randn(n_features, d).to(dtype)
    out = torch.empty(batch, n_features, dtype=dtype)
    times = []
    for _ in range(13):
        began = time.perf_counter()
        if fresh:
            a @ b.T
        else:
            torch.mm(a, b.T, out=out)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[3:])


for activation in ("topk", "batchtopk"):
    cfg = DictionaryConfig(kind="sae", activation=activation, d_sae=n_features, k=k)
    recipe = TrainConfig(steps=10_000, batch_size=batch, tensorboard=False, log_every=1000)
    training = Training(cfg, recipe, source, site_in="x", site_out="x", out=None)
    training.begin(source.batches(), _Silent())
    times = []
    with training:
        for number, (x, y) in zip(range(steps + 3), source.batches(), strict=False):
            began = time.perf_counter()
            training.take(x, y)
            if number >= 3:
                times.append(time.perf_counter() - began)
    print(json.dumps({"what": f"{activation} ({training.state.precision})", "ms": 1e3 * statistics.median(times)}))
for dtype in (torch.float32, torch.bfloat16):
    for fresh in (True, False):
        what = f"encoder product alone, {str(dtype)[6:]}, {'fresh' if fresh else 'reused'} memory"
        print(json.dumps({"what": what, "ms": product(dtype, fresh)}))
print(json.dumps({"what": "peak memory", "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
