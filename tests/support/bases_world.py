"""Bases of every kind for tiny models."""

from __future__ import annotations

import torch

from mechstudy.circuits.bases import SAE_SITES
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.neurons import Basis, Neurons, with_neurons
from mechstudy.models.language_model import LanguageModel
from tests.support.interventions_world import transcoders

SAES = tuple(f"sae {kind}" for kind in SAE_SITES)
KINDS = ("transcoders", "skip transcoders", *SAES, "neurons", "mixed", "sae and neurons")


def random_sae(model: LanguageModel, kind: str, layer: int, n: int = 24, k: int = 5) -> Dictionary:
    """A random SAE of a site: TopK, with biases."""
    d = model.d_model
    generator = torch.Generator().manual_seed(100 + layer)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * d**-0.5

    site = f"{kind}.{layer}"
    meta = DictionaryMeta("sae", "topk", d, d, n, k, site, site)
    return Dictionary(meta, W_enc=draw(d, n), b_enc=draw(n) + 1, W_dec=draw(n, d), b_dec=draw(d))


def bases(model: LanguageModel, kind: str) -> dict[int, Basis]:
    """Bases by layer of a model of three layers."""
    if kind == "transcoders":
        return dict(transcoders(model))
    if kind == "skip transcoders":
        return dict(transcoders(model, skip=True))
    if kind == "neurons":
        return with_neurons(model, {}, range(model.n_layers))
    if kind == "mixed":
        return with_neurons(model, transcoders(model, (1,), skip=True), range(model.n_layers))
    if kind == "sae and neurons":
        return {0: Neurons(model, 0), 1: random_sae(model, "resid_post", 1), 2: Neurons(model, 2)}
    site = kind.removeprefix("sae ")
    return {layer: random_sae(model, site, layer) for layer in (0, 2)}
