"""Sparse autoencoders, transcoders, crosscoders and cross-layer transcoders: training, evaluation, files.

sae = train(DictionaryConfig(kind="sae", k=32), TrainConfig(steps=1_000), rows)
evaluate(sae, held_out)["fvu"]
sae.save("my-sae")
load_dictionary("my-sae").encode(rows)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
