"""A dictionary's effect inside its model: the next-token loss with the reconstruction in place of the activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.loss_recovered import FIELD, UNDEFINED, loss_recovered
from mechstudy.models.batches import length_buckets
from mechstudy.models.reading import SiteReader
from mechstudy.models.sites import Site


@runtime_checkable
class ForwardModel(Protocol):
    """The part of `models.language_model.LanguageModel` used here."""

    def forward(
        self, tokens_BT: Tensor, *, capture: Any = ..., edits: Any = ..., start: Any = ..., logits_at: Any = ...
    ) -> Any:
        """See `LanguageModel.forward`."""
        ...


@torch.no_grad()
def language_model_effect(
    model: ForwardModel,
    dictionary: Dictionary,
    token_rows: Sequence[Sequence[int]] | Tensor,
    *,
    batch_tokens: int = 1_024,
) -> dict[str, float | str | None]:
    """The model's next-token loss with a dictionary's reconstruction in place of the activation.

    Three forwards per batch: unchanged, with the reconstruction at `site_out` (of the input at `site_in` in the
    same forward), with zeros there. The first position and sinks keep the model's own activation in all three.
    The second and third begin at the patched layer.

    Args:
        model: the model the dictionary was trained on.
        dictionary: read at `site_in`, written at `site_out`.
        token_rows: documents.
        batch_tokens: tokens of a forward pass.

    Returns:
        ce_model, ce_dictionary, ce_zero (nats per token), ce_loss_recovered = (zero - dictionary) / (zero - model),
        kl = KL(model || dictionary) in nats, n_tokens predicted. Where the losses are not in the order model <=
        dictionary <= zero, ce_loss_recovered is None and ce_loss_recovered_undefined says why.
    """
    site_in, site_out = Site.parse(dictionary.cfg.site_in), Site.parse(dictionary.cfg.site_out)
    entry = Site("resid_pre", site_in.layer)
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in token_rows]
    if not any(len(row) > 1 for row in rows):
        raise MechstudyError("no token row is longer than one token, so there is nothing to predict")
    totals = {"model": 0.0, "dictionary": 0.0, "zero": 0.0, "kl": 0.0}
    n_tokens = 0
    for indices in length_buckets([len(row) for row in rows], batch_tokens):
        tokens_BT = torch.stack([rows[i] for i in indices])
        if tokens_BT.shape[1] < 2:
            continue
        splice = _Splice(dictionary, site_in, site_out)
        below = [Site.parse(site) for site in dictionary.inputs_below]
        clean = model.forward(tokens_BT, capture=[entry, *below], logits_at="all")
        splice.below = [clean.activations[site] for site in below]
        logp_clean = _log_probs(clean.logits)
        start = (entry.layer, clean.activations[entry])
        totals["model"] += _loss(logp_clean, tokens_BT)
        for name, edits in (("dictionary", splice.reconstructing()), ("zero", splice.zeroing())):
            logp = _log_probs(model.forward(tokens_BT, edits=edits, start=start, logits_at="all").logits)
            totals[name] += _loss(logp, tokens_BT)
            if name == "dictionary":
                totals["kl"] += float((logp_clean.exp() * (logp_clean - logp)).sum(dtype=torch.float64))
        n_tokens += tokens_BT.numel() - len(tokens_BT)
    mean = {name: total / n_tokens for name, total in totals.items()}
    recovered, undefined = loss_recovered(mean["model"], mean["dictionary"], mean["zero"])
    return {
        "ce_model": mean["model"],
        "ce_dictionary": mean["dictionary"],
        "ce_zero": mean["zero"],
        FIELD: recovered,
        **({} if undefined is None else {UNDEFINED: undefined}),
        "kl": mean["kl"],
        "n_tokens": n_tokens,
    }


class _Splice:
    """Edits of one batch: remember the input at site_in, replace the activation at site_out."""

    def __init__(self, dictionary: Dictionary, site_in: Site, site_out: Site) -> None:
        self._dictionary, self._in, self._out = dictionary, site_in, site_out
        self._reader = SiteReader(site_in)
        self.below: list[Tensor] = []  # inputs of lower layers, which the edit does not change

    def reconstructing(self) -> dict[Site, Any]:
        return self._with(lambda x, y: self._dictionary.reconstruct(x).to(y))

    def zeroing(self) -> dict[Site, Any]:
        return self._with(lambda _, y: torch.zeros_like(y))

    def _with(self, replacement: Any) -> dict[Site, Any]:
        def replace(y_BTD: Tensor) -> Tensor:
            x_BTD = y_BTD if self._in == self._out else self._reader.take()
            x_BTD = (torch.cat([*self.below, x_BTD], -1) if self.below else x_BTD).to(self._dictionary.b_enc)
            keep = ~self._dictionary.is_valid(x_BTD, y_BTD)
            keep[:, 0] = True
            return torch.where(keep[..., None].to(y_BTD.device), y_BTD, replacement(x_BTD, y_BTD))

        return {self._out: replace} if self._in == self._out else self._reader.edits | {self._out: replace}


def _log_probs(logits_BTV: Tensor) -> Tensor:
    """[B, T-1, V]: each position's prediction of the next token."""
    return logits_BTV[:, :-1].float().log_softmax(-1)


def _loss(logp: Tensor, tokens_BT: Tensor) -> float:
    targets = tokens_BT[:, 1:].to(logp.device)
    return -float(logp.gather(-1, targets.unsqueeze(-1)).sum(dtype=torch.float64))
