"""How good a dictionary is: on rows it has not seen, and inside the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.models.batches import length_buckets
from mechstudy.models.sites import Site

DENSE_FROM = 0.1  # a feature active in more than this share of rows is dense
HISTOGRAM_EDGES = [-7.0 + 0.25 * i for i in range(29)]  # log10 of a feature's share of active rows


class ForwardModel(Protocol):
    """The part of `models.language_model.LanguageModel` used here."""

    def forward(
        self, tokens_BT: Tensor, *, capture: Any = ..., edits: Any = ..., start: Any = ..., logits_at: Any = ...
    ) -> Any: ...


class VarianceSums:
    """Float64 sums for FVU against the vector mean, pooled over batches.

    The first batch's mean is subtracted first, so large offsets cost no digits.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._origin: Tensor | None = None
        self._sum: Tensor | None = None
        self._square = 0.0
        self._error = 0.0

    def add(self, y_ND: Tensor, y_hat_ND: Tensor) -> None:
        y = y_ND.double()
        if not len(y):
            return
        if self._origin is None or self._sum is None:
            self._origin = y.mean(0)
            self._sum = torch.zeros_like(self._origin)
        centred = y - self._origin
        self._sum = self._sum + centred.sum(0)
        self._square += float(centred.square().sum())
        self._error += float((y - y_hat_ND.double()).square().sum())
        self.n_rows += len(y)

    def fvu(self) -> float:
        """Fraction of variance unexplained.

        Raises:
            MechstudyError: no rows, or all rows equal, so that there is no variance to explain.
        """
        if self._sum is None or not self.n_rows:
            raise MechstudyError("there are no rows to evaluate on")
        total = self._square - float(self._sum.square().sum()) / self.n_rows
        if not total > 0:
            raise MechstudyError(
                "every row is equal, so there is no variance to explain", facts={"rows": str(self.n_rows)}
            )
        return self._error / total


def fvu(y_ND: Tensor, y_hat_ND: Tensor) -> float:
    """Fraction of variance unexplained: 0 is perfect, 1 is no better than the vector mean over rows.

    Raises:
        MechstudyError: every row is equal.
    """
    sums = VarianceSums()
    sums.add(y_ND, y_hat_ND)
    return sums.fvu()


@torch.no_grad()
def evaluate(dictionary: Dictionary, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Score on held-out rows (x [N, d_in], y [N, d_out]).

    Sinks (rows above the dictionary's `max_input_norm` or `max_output_norm`) are counted in `sink_rows_share` and
    left out of the rest.

    Returns:
        fvu, r2 = 1 - fvu, l0 (mean active features of a row), dead_share (never active here), dense_share
        (active in over a tenth of rows), density_histogram {edges: log10, counts} over features that were
        active, n_rows, sink_rows_share.
    """
    sums = VarianceSums()
    counts = torch.zeros(dictionary.cfg.d_sae, dtype=torch.int64, device=dictionary.W_enc.device)
    n_sinks = 0
    for batch in batches:
        x, y = (tensor.to(dictionary.W_enc) for tensor in batch)
        valid = dictionary.is_valid(x, y)
        n_sinks += int((~valid).sum())
        x, y = x[valid], y[valid]
        f_NF = dictionary.encode(x)
        y_hat = dictionary.decode(f_NF)
        if dictionary.W_skip is not None:
            y_hat = y_hat + x @ dictionary.W_skip.T
        sums.add(y, y_hat)
        counts += (f_NF > 0).sum(0)
    score = sums.fvu()
    density = counts.double().cpu() / sums.n_rows
    histogram = torch.histogram(
        density[density > 0].log10().clamp(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1]),
        torch.tensor(HISTOGRAM_EDGES, dtype=torch.float64),
    ).hist
    return {
        "fvu": score,
        "r2": 1.0 - score,
        "l0": float(counts.sum()) / sums.n_rows,
        "dead_share": float((counts == 0).double().mean()),
        "dense_share": float((density > DENSE_FROM).double().mean()),
        "density_histogram": {"edges": HISTOGRAM_EDGES, "counts": [int(count) for count in histogram]},
        "n_rows": sums.n_rows,
        "sink_rows_share": n_sinks / (n_sinks + sums.n_rows),
    }


@torch.no_grad()
def language_model_effect(
    model: ForwardModel,
    dictionary: Dictionary,
    token_rows: Sequence[Sequence[int]] | Tensor,
    *,
    batch_tokens: int = 1_024,
) -> dict[str, float | None]:
    """What putting the reconstruction into the model does to its next-token loss.

    Three forwards per batch: as it is, with the reconstruction at `site_out` (of the input at `site_in` in the
    same forward), with zeros there. The first position and sinks keep the model's own activation in all three.
    The second and third begin at the patched layer.

    Returns:
        ce_model, ce_dictionary, ce_zero (nats per token), ce_loss_recovered = (zero - dictionary) / (zero - model)
        or None where zeros do no harm, kl = KL(model || dictionary) in nats, n_tokens predicted.
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
        clean = model.forward(tokens_BT, capture=[entry], logits_at="all")
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
    harm = mean["zero"] - mean["model"]
    return {
        "ce_model": mean["model"],
        "ce_dictionary": mean["dictionary"],
        "ce_zero": mean["zero"],
        "ce_loss_recovered": (mean["zero"] - mean["dictionary"]) / harm if abs(harm) > 1e-9 else None,
        "kl": mean["kl"],
        "n_tokens": n_tokens,
    }


class _Splice:
    """Edits of one batch: remember the input at site_in, replace the activation at site_out."""

    def __init__(self, dictionary: Dictionary, site_in: Site, site_out: Site) -> None:
        self._dictionary, self._in, self._out = dictionary, site_in, site_out
        self._x_BTD: Tensor | None = None

    def reconstructing(self) -> dict[Site, Any]:
        return self._with(lambda x, y: self._dictionary.reconstruct(x).to(y))

    def zeroing(self) -> dict[Site, Any]:
        return self._with(lambda _, y: torch.zeros_like(y))

    def _with(self, replacement: Any) -> dict[Site, Any]:
        def replace(y_BTD: Tensor) -> Tensor:
            x_BTD = y_BTD if self._in == self._out else self._x_BTD
            assert x_BTD is not None  # site_in runs before site_out
            x_BTD = x_BTD.to(self._dictionary.W_enc)
            keep = ~self._dictionary.is_valid(x_BTD, y_BTD)
            keep[:, 0] = True
            return torch.where(keep[..., None].to(y_BTD.device), y_BTD, replacement(x_BTD, y_BTD))

        return {self._out: replace} if self._in == self._out else {self._in: self._watch, self._out: replace}

    def _watch(self, x_BTD: Tensor) -> Tensor:
        self._x_BTD = x_BTD
        return x_BTD


def _log_probs(logits_BTV: Tensor) -> Tensor:
    """[B, T-1, V]: each position's prediction of the next token."""
    return logits_BTV[:, :-1].float().log_softmax(-1)


def _loss(logp: Tensor, tokens_BT: Tensor) -> float:
    targets = tokens_BT[:, 1:].to(logp.device)
    return -float(logp.gather(-1, targets.unsqueeze(-1)).sum(dtype=torch.float64))
