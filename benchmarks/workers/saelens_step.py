"""SAELens' training step (TopK, BatchTopK): forward, backward, clipping, Adam. Arguments: d F k batch steps."""

import inspect
import json
import statistics
import sys
import time

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

d, n_features, k, batch, steps = map(int, sys.argv[1:6])
torch.manual_seed(0)
rows = torch.randn(8 * batch, d)
fields = inspect.signature(TrainStepInput).parameters
variants = (("topk", TopKTrainingSAEConfig, TopKTrainingSAE),
            ("batchtopk", BatchTopKTrainingSAEConfig, BatchTopKTrainingSAE))  # fmt: skip
for name, config, cls in variants:
    for autocast in (False, True):
        sae = cls(config(d_in=d, d_sae=n_features, k=k))
        optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
        dead = torch.zeros(n_features, dtype=torch.bool)
        times = []
        for i in range(steps + 2):
            x = rows[i % 8 * batch : (i % 8 + 1) * batch]
            given = {"sae_in": x, "dead_neuron_mask": dead, "coefficients": {}}
            given |= {f: v for f, v in {"n_training_steps": i, "is_logging_step": False}.items() if f in fields}
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                out = sae.training_forward_pass(step_input=TrainStepInput(**given))
            out.loss.backward()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - began)
        what = f"{name} ({'bfloat16 autocast' if autocast else 'float32'})"
        print(json.dumps({"what": what, "ms": 1e3 * statistics.median(times[2:])}))
