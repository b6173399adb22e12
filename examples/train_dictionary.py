"""Train a sparse autoencoder on your own activations: python examples/train_dictionary.py [rows.safetensors]

With two processes: torchrun --nproc-per-node 2 examples/train_dictionary.py [rows.safetensors]

The file holds one tensor [N, d]. Without one, rows of a made-up world stand in, so that the script shows what it does.
"""

import sys
from pathlib import Path

import torch

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.reconstruction import evaluate
from mechstudy.dictionaries.evaluation.synthetic import SyntheticWorld, WorldConfig
from mechstudy.dictionaries.training.data_parallel import current_team
from mechstudy.dictionaries.training.trainer import train

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
    site_in="resid_post.6",  # what the rows are; kept in the file
)
scores = evaluate(dictionary, held_out)
print({name: round(scores[name], 3) for name in ("r2", "l0", "dead_share")})

folder = Path("runs") / "my-dictionary"
if current_team().rank:  # under torchrun every process holds the same dictionary; the first saves it
    sys.exit()
dictionary.save(folder)  # SAELens' format
again = Dictionary.load(folder)
features = again.encode(held_out)  # [n, F], zero where a feature is not active
torch.testing.assert_close(again.decode(features), dictionary.reconstruct(held_out))
print("saved to", folder)
