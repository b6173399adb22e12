"""dictionary_learning's training step (BatchTopK), by its own trainer. Arguments: d F k batch steps."""

import json
import statistics
import sys
import time

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

d, n_features, k, batch, steps = map(int, sys.argv[1:6])
torch.manual_seed(0)
rows = torch.randn(8 * batch, d)
for autocast in (False, True):
    trainer = BatchTopKTrainer(
        steps=10_000, activation_dim=d, dict_size=n_features, k=k, layer=0, lm_name="x", device="cpu"
    )
    times = []
    for i in range(steps + 2):
        x = rows[i % 8 * batch : (i % 8 + 1) * batch]
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            trainer.update(i + 1, x)
        times.append(time.perf_counter() - began)
    what = f"batchtopk ({'bfloat16 autocast' if autocast else 'float32'})"
    print(json.dumps({"what": what, "ms": 1e3 * statistics.median(times[2:])}))
