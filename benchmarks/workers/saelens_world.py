"""Rows of SAELens' own synthetic data, a small SynthSAEBench. Arguments: file seed training_rows held_out_rows.

512 features in 128 dimensions, firing probabilities by Zipf's law, hierarchy, low-rank correlations, random strengths.
"""

import json
import sys

import torch
from sae_lens.synthetic import (
    HierarchyConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from safetensors.torch import save_file

SAMPLE = 8_192

file, seed, n_train, n_held_out = sys.argv[1], *map(int, sys.argv[2:5])
world = SyntheticModel(
    SyntheticModelConfig(
        num_features=512,
        hidden_dim=128,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.3, min_prob=0.005),
        hierarchy=HierarchyConfig(total_root_nodes=24, branching_factor=4, max_depth=2, compensate_probabilities=True),
        correlation=LowRankCorrelationConfig(rank=16, correlation_scale=0.1),
        std_firing_magnitudes=0.25,
        bias=1.0,
        seed=seed,
    )
)
torch.manual_seed(seed + 1)
rows = torch.cat([world.sample(min(SAMPLE, n_train - first)) for first in range(0, n_train, SAMPLE)])
x, strengths = world.sample_with_features(n_held_out)
save_file(
    {
        "rows": rows.detach().contiguous(),
        "held_out": x.detach().contiguous(),
        "strengths": strengths.detach().contiguous(),
        "features": world.feature_dict.feature_vectors.detach().contiguous(),
        "offset": world.feature_dict.bias.detach().contiguous(),
    },
    file,
)
print(json.dumps({"rows": n_train}))
