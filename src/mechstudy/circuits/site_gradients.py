"""Gradients of the answers' contrast at sites of the live model, for batches of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, contrasts
from mechstudy.models.graph_memory import should_checkpoint
from mechstudy.models.language_model import Edit, LanguageModel
from mechstudy.models.sites import Site


@dataclass(frozen=True)
class SiteGradients:
    """The contrast of every row, and its gradient at each site, [B, T, width]."""

    value_B: Float64[Tensor, " b"]
    at: Mapping[Site, Float[Tensor, "b t w"]]


def site_gradients(
    model: LanguageModel,
    tokens_BT: Int[Tensor, "b t"],
    of_row: Sequence[Contrast],
    sites: Sequence[Site],
    *,
    edits: Mapping[Site, Edit] | None = None,
    start: tuple[int, Float[Tensor, "b t d"]] | None = None,
    checkpointing: str = "auto",
) -> SiteGradients:
    """Gradients at sites of a run with edits; that of an edited site is taken after its edit.

    Args:
        model: the model.
        tokens_BT: token ids.
        of_row: the contrast of each row's answers, at the last position.
        sites: where the gradient is taken.
        edits: of the run, by site.
        start: the layer that the run starts at, with the residual stream that enters it.
        checkpointing: on, off or auto (`models.graph_memory.should_checkpoint`); gradients are the same.
    """
    rows, length = tokens_BT.shape
    added = {
        site: torch.zeros(
            rows, length, model.width(site), dtype=model.dtype, device=model.device, requires_grad=True
        )
        for site in sites
    }  # fmt: skip
    own = dict(edits or {})
    ending: dict[Site, Edit] = {site: partial(_edited_and_added, own.get(site), zero) for site, zero in added.items()}
    again = should_checkpoint(checkpointing, model, rows, length)
    with torch.enable_grad():
        logits = model.forward(tokens_BT, edits=own | ending, start=start, grad=True, checkpointing=again).logits
        assert logits is not None
        value_B = contrasts(logits, of_row)
        gradients = torch.autograd.grad(value_B.sum(), list(added.values()))
    return SiteGradients(value_B.detach(), dict(zip(added, gradients, strict=True)))


def _edited_and_added(edit: Edit | None, zero: Tensor, x: Tensor) -> Tensor:
    return (x if edit is None else edit(x)) + zero
