"""Train a sparse autoencoder on your own activations: python examples/train_dictionary.py [rows.safetensors]

With two processes: torchrun --nproc-per-node 2 examples/train_dictionary.py [rows.safetensors]

The file holds one tensor [N, d]. Without one, the script uses rows of a synthetic world.
"""

import sys
from pathlib import Path

import torch

from mechstudy.dictionaries import (
    DictionaryConfig,
    SyntheticWorld,
    TrainConfig,
    WorldConfig,
    current_process_group,
    evaluate,
    load_dictionary,
    train,
)

if len(sys.argv) > 1:
    from safetensors.torch import load_file

    rows = next(iter(load_file(sys.argv[1]).values())).float()
else:
    world = SyntheticWorld(WorldConfig(d=64, n_features=128, l0=6), batch_size=20_000)
    rows = world.sample(0).x_ND
train_rows, held_out = rows[: -len(rows) // 10], rows[-len(rows) // 10 :]

dictionary = train(
    DictionaryConfig(kind="sae", activation="batchtopk", expansion=2, k=6),
    TrainConfig(steps=300, batch_size=1024),
    train_rows,
    site_in="resid_post.6",  # where the rows were captured; kept in the file
)
scores = evaluate(dictionary, held_out)
print({name: round(scores[name], 3) for name in ("r2", "l0", "dead_share")})

folder = Path("runs") / "my-dictionary"
if current_process_group().rank:  # under torchrun every process holds the same dictionary; the first saves it
    sys.exit()
dictionary.save(folder)  # SAELens' format
again = load_dictionary(folder)
features = again.encode(held_out)  # [n, F], zero where a feature is not active
torch.testing.assert_close(again.decode(features), dictionary.reconstruct(held_out))
print("saved to", folder)
