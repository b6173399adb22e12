"""The share of the loss that a dictionary recovers, where it means something; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELD = "ce_loss_recovered"
UNDEFINED = f"{FIELD}_undefined"
LOSSES = ("ce_model", "ce_dictionary", "ce_zero")
_ROUNDING = 1e-5  # nats per token: losses closer than this are equal


def loss_recovered(ce_model: float, ce_dictionary: float, ce_zero: float) -> tuple[float | None, str | None]:
    """(zero - dictionary) / (zero - model) and None; or None and the reason why this is no share of a loss.

    Args:
        ce_model, ce_dictionary, ce_zero: next-token loss of the model, with the reconstruction in place of the
            activation, and with zeros there, in nats per token.
    """
    harm = ce_zero - ce_model
    if abs(harm) <= _ROUNDING:
        return None, "zeros at the site do not change the loss"
    if harm < 0:
        return None, "zeros at the site lower the loss"
    if ce_dictionary < ce_model - _ROUNDING:
        return None, "the reconstruction lowers the loss"
    if ce_dictionary > ce_zero + _ROUNDING:
        return None, "the reconstruction is worse than zeros"
    return min(1.0, max(0.0, (ce_zero - ce_dictionary) / harm)), None


def checked(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation whose ``ce_loss_recovered`` is null with a reason where it is undefined.

    Earlier versions wrote the quotient whatever its losses, for example 1.31 where zeros lowered the loss.
    """
    losses = [evaluation.get(name) for name in LOSSES]
    if evaluation.get(UNDEFINED) or not all(isinstance(loss, int | float) for loss in losses):
        return dict(evaluation)
    _, reason = loss_recovered(*losses)  # type: ignore[arg-type]  # all are numbers
    return dict(evaluation) if reason is None else {**evaluation, FIELD: None, UNDEFINED: reason}
