"""saprmarks' dictionary_learning: makes, saves and computes small dictionaries of every class it loads."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

# The package imports nnsight for its activation buffers; the classes under test need none of it.
sys.modules["nnsight"] = types.ModuleType("nnsight")
sys.modules["nnsight"].LanguageModel = object  # type: ignore[attr-defined]

from dictionary_learning.dictionary import (  # noqa: E402
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
)
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402

from tests.peers.workers.serve import answer, randomise, rows, serve  # noqa: E402

CLASSES = {
    found.__name__: found
    for found in (AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE,
                  MatryoshkaBatchTopKSAE)
}  # fmt: skip


def classes() -> list[str]:
    """Those that its load_dictionary knows; it imports more than is installed here, so its text is read."""
    import dictionary_learning

    text = Path(dictionary_learning.__file__).with_name("utils.py").read_text()
    return sorted(name for name in CLASSES if f'"{name}"' in text)


def make(folder: str, name: str, d: int, width: int, k: int, threshold: float, seed: int = 0) -> None:
    sizes = [width // 4, width // 4, width // 2]
    more = {"AutoEncoderTopK": (k,), "BatchTopKSAE": (k,), "MatryoshkaBatchTopKSAE": (k, sizes)}.get(name, ())
    made = CLASSES[name](d, width, *more)
    randomise(made, seed)
    if isinstance(getattr(made, "threshold", None), torch.Tensor) and made.threshold.ndim == 0:
        made.threshold.fill_(threshold)
    path = Path(folder) / "ae.pt"
    torch.save({key: tensor.cpu() for key, tensor in made.state_dict().items()}, path)
    config = {"trainer": {"dict_class": name, "layer": 8, "lm_name": "some/model", "submodule_name": "resid_post_8"}}
    config["trainer"] |= {"k": k} if more else {}
    (Path(folder) / "config.json").write_text(json.dumps(config))
    loaded = CLASSES[name].from_pretrained(str(path), **({"k": k} if more else {}))
    x = rows(folder)
    features = loaded.encode(x)
    answer(folder, features, loaded.decode(features))


if __name__ == "__main__":
    serve(classes=classes, make=make)
