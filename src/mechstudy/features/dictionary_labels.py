"""How many of a dictionary's features have a label that other documents bear out, and how good the labels are."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechstudy.core.progress import Progress
from mechstudy.core.seeds import numpy_generator
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.features.examples import collect_features
from mechstudy.features.labels import claims, labels
from mechstudy.features.rules import Text
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site


def dictionary_claims(
    model: LanguageModel,
    dictionary: Dictionary,
    token_rows_BT: Int[Tensor, "b t"],
    n_features: int,
    *,
    seed: int = 0,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`claims` of features that are drawn at random from all of a dictionary, dead ones too.

    Args:
        model: the model.
        dictionary: of one layer.
        token_rows_BT: documents of equal length, which labels are made from and scored on.
        n_features: to draw, at most.
        seed: of the drawing.
        batch_tokens: tokens of a forward pass.
        progress: receives progress.
    """
    rng, size = numpy_generator(seed, "labels", "features"), dictionary.cfg.d_sae
    drawn = sorted(rng.choice(size, min(n_features, size), replace=False).tolist())
    layer = Site.parse(dictionary.cfg.site_in).layer
    found = collect_features(
        model, {layer: dictionary}, {layer: drawn}, token_rows_BT, 1,
        keep=len(token_rows_BT), ranges=False, batch_tokens=batch_tokens, progress=progress,
    )[layer]  # fmt: skip
    text = Text.of(model, token_rows_BT)
    return claims(labels(text, (acts_BT.flatten().float().numpy() for acts_BT in found.acts_NBT), seed=seed))
