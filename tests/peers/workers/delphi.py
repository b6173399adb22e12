"""EleutherAI's delphi: reads a cache of latents as its pipeline does."""

from __future__ import annotations

import sys
import types
from typing import Any

# Three packages that reading a cache does not use, and that are large or have large dependencies.
for name, attributes in {"faiss": (), "blobfile": (), "sentence_transformers": ("SentenceTransformer",)}.items():
    sys.modules[name] = types.ModuleType(name)
    for attribute in attributes:
        setattr(sys.modules[name], attribute, type(attribute, (), {}))

from delphi.config import ConstructorConfig, SamplerConfig  # noqa: E402
from delphi.latents import LatentDataset  # noqa: E402

from tests.peers.workers.serve import serve  # noqa: E402


class Tokenizer:
    """A token's text is its number."""

    def batch_decode(self, tokens: Any, **_: Any) -> list[str]:
        return [str(token) for token in tokens]


def read(folder: str, modules: list[str], window: int) -> dict[str, Any]:
    """Of each latent with two active windows or more: its frequency, and its strongest window with activations."""
    dataset = LatentDataset(
        folder,
        SamplerConfig(n_examples_train=2, n_examples_test=2, n_quantiles=1),
        ConstructorConfig(example_ctx_len=window, min_examples=2, n_non_activating=2),
        Tokenizer(),
        modules,
    )
    return {
        f"{record.latent}": {
            "frequency": record.per_token_frequency,
            "windows": len(record.examples),
            "max": record.max_activation,
            "tokens": record.examples[0].tokens.tolist(),
            "activations": record.examples[0].activations.tolist(),
        }
        for record in dataset
    }


if __name__ == "__main__":
    serve(read=read)
