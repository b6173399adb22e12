"""The evaluation of a dictionary that somebody else has trained, as one flat JSON record."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.model_effect import ForwardModel, language_model_effect
from mechstudy.dictionaries.evaluation.reconstruction import evaluate
from mechstudy.dictionaries.stored import shown_activation

_USELESS = 1.0  # FVU: no better than the mean of the rows


def published_record(
    dictionary: Dictionary,
    held_out: Any,
    model: ForwardModel,
    token_rows: Int[Tensor, "n t"],
    *,
    layer: int,
    n_tokens: int,
) -> dict[str, Any]:
    """Score a published dictionary on held-out rows and inside the model.

    Args:
        dictionary: with the sites it is used at.
        held_out: rows of those sites, as `evaluate` accepts them.
        model: the study's model.
        token_rows: held-out documents [n, T].
        layer: its layer.
        n_tokens: tokens of `token_rows` to predict, in whole documents, at least one.

    Returns:
        What `evaluation_record` returns, with None for what only training knows. ``health`` says what the numbers say
        of a mismatch of model, site or normalisation.
    """
    reconstruction = evaluate(dictionary, held_out)
    reconstruction["n_eval_rows"] = reconstruction.pop("n_rows")
    effect = language_model_effect(model, dictionary, token_rows[: max(1, n_tokens // token_rows.shape[1])].long())
    cfg = dictionary.cfg
    about = {
        "layer": layer,
        "kind": cfg.kind,
        "activation": shown_activation(cfg, dictionary.threshold),
        "site_in": cfg.site_in,
        "site_out": cfg.site_out,
        "d_in": cfg.d_in,
        "d_out": cfg.d_out,
        "d_sae": cfg.d_sae,
        "k": cfg.k,
        "steps": None,
        "train_rows": None,
        "health": _findings(dictionary, reconstruction),
        "distinct_rows": None,
        "train_sink_rows": None,
        "mixing": None,
    }
    return about | reconstruction | effect


def _findings(dictionary: Dictionary, reconstruction: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with the pair of dictionary and rows, if anything is."""
    cfg, fvu = dictionary.cfg, reconstruction["fvu"]
    made_for = cfg.metadata.get("model_name")
    text = None
    if fvu is not None and fvu >= _USELESS:
        text = f"it reconstructs {cfg.site_out} no better than the mean (FVU {fvu:.2f})"
    elif reconstruction["l0"] == 0:
        text = f"no feature is active on {cfg.site_in}"
    if text is None:
        return []
    fix = f"a dictionary of this model{f' (its file names {made_for})' if made_for else ''}, site and normalisation"
    return [{"name": "mismatch", "step": None, "action": "warn", "text": text, "fix": fix}]
