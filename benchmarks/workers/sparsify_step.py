"""sparsify's training step (TopK): forward, backward, Adam, unit decoder rows. Arguments: d F k batch steps."""

import json
import statistics
import sys
import time

import torch
from sparsify import SparseCoder, SparseCoderConfig

d, n_features, k, batch, steps = map(int, sys.argv[1:6])
torch.manual_seed(0)
rows = torch.randn(8 * batch, d)
for autocast in (False, True):
    sae = SparseCoder(d, SparseCoderConfig(num_latents=n_features, k=k), device="cpu")
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
    times = []
    for i in range(steps + 2):
        x = rows[i % 8 * batch : (i % 8 + 1) * batch]
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = sae(x)
        out.fvu.backward()
        optimizer.step()
        optimizer.zero_grad()
        sae.set_decoder_norm_to_unit_norm()
        times.append(time.perf_counter() - began)
    what = f"topk ({'bfloat16 autocast' if autocast else 'float32'})"
    print(json.dumps({"what": what, "ms": 1e3 * statistics.median(times[2:])}))
