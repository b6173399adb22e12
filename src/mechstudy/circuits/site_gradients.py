"""Gradients at sites of the live model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.models.graph_memory import should_checkpoint
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site

Values = Callable[[Mapping[Site, Edit]], Float[Tensor, " b"]]
"""Of a run with edits, a value of every row, with its gradient for tensors that the edits introduce."""


@dataclass(frozen=True)
class SiteGradients:
    """A value of every row, and its gradient at each site, [B, T, width]."""

    value_B: Float[Tensor, " b"]
    at: Mapping[Site, Float[Tensor, "b t w"]]


@torch.enable_grad()
def site_gradients(
    model: LanguageModel,
    shape: tuple[int, int],
    sites: Sequence[Site],
    values: Values,
    edits: Mapping[Site, Edit] | None = None,
) -> SiteGradients:
    """Gradients of values of runs; everything above a site responds. That of an edited site is taken after its edit.

    Args:
        model: the model.
        shape: rows and tokens of the runs.
        sites: where the gradient is taken.
        values: of a run with edits.
        edits: of the run, by site.
    """
    zero = torch.zeros((), dtype=model.dtype, device=model.device)
    added = {site: zero.new_zeros(*shape, model.width(site)).requires_grad_() for site in sites}
    own = dict(edits or {})
    ending: dict[Site, Edit] = {site: partial(_edited_and_added, own.get(site), leaf) for site, leaf in added.items()}
    value_B = values(own | ending)
    gradients = torch.autograd.grad(value_B.sum(), list(added.values()))
    return SiteGradients(value_B.detach(), dict(zip(added, gradients, strict=True)))


def contrast_gradients(
    model: LanguageModel,
    tokens_BT: Int[Tensor, "b t"],
    of_row: Sequence[Contrast],
    sites: Sequence[Site],
    *,
    edits: Mapping[Site, Edit] | None = None,
    start: tuple[int, Float[Tensor, "b t d"]] | None = None,
    checkpointing: str = "auto",
) -> SiteGradients:
    """Gradients of the answers' contrasts of a batch of prompts.

    Args:
        model: the model.
        tokens_BT: token ids.
        of_row: the contrast of each row's answers, at the last position.
        sites: where the gradient is taken.
        edits: of the run, by site.
        start: the layer that the run starts at, with the residual stream that enters it.
        checkpointing: on, off or auto (`models.graph_memory.should_checkpoint`); gradients are the same.
    """
    values = contrast_values(model, tokens_BT, of_row, start, checkpointing)
    return site_gradients(model, (tokens_BT.shape[0], tokens_BT.shape[1]), sites, values, edits)


def contrast_values(
    model: LanguageModel,
    tokens_BT: Int[Tensor, "b t"],
    of_row: Sequence[Contrast],
    start: tuple[int, Float[Tensor, "b t d"]] | None = None,
    checkpointing: str = "auto",
    cache: Any = None,
) -> Values:
    """The answers' contrasts of a batch as a function of a run's edits; arguments as `contrast_gradients`.

    ``cache``: keys and values of tokens before ``tokens_BT``, which the runs read and do not add to (`models.prefix`).
    """
    again = should_checkpoint(checkpointing, model, *tokens_BT.shape)

    def values(edits: Mapping[Site, Edit]) -> Tensor:
        logits = model.forward(tokens_BT, edits=edits, start=start, grad=True, checkpointing=again, cache=cache).logits
        assert logits is not None
        return contrasts(logits, of_row)

    return values


def _edited_and_added(edit: Edit | None, zero: Tensor, x: Tensor) -> Tensor:
    return (x if edit is None else edit(x)) + zero
