"""Converts trained weights to a dictionary on raw rows."""

from __future__ import annotations

from typing import Any

import torch

from mechstudy.dictionaries.architectures import architecture_of
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.stored import DictionaryMeta
from mechstudy.dictionaries.training.initialise import Normalisation
from mechstudy.dictionaries.training.state import TrainState
from mechstudy.dictionaries.weights import Weights


def finished(
    cfg: DictionaryConfig, train_cfg: TrainConfig, state: TrainState, source: Any, site_in: str, site_out: str
) -> Dictionary | CrossLayerTranscoder:
    """Fold the normalisation, and weights that only training needs, into the dictionary."""
    norm = state.normalisation
    learned = Weights.of(state.average) if state.average else state.weights
    weights, threshold = architecture_of(cfg).at_inference(learned, state.threshold)
    limit, limit_out = getattr(source, "max_input_norm", None), getattr(source, "max_output_norm", None)
    n_features = len(weights.b_enc)
    metadata = {
        "max_input_norm": None if limit is None else float(limit),
        "max_output_norm": None if limit_out is None else float(limit_out),
        "trained_as": f"matryoshka_{cfg.activation}" if cfg.matryoshka else cfg.activation,
        "normalisation": {"scale_in": norm.scale_in, "scale_out": norm.scale_out},
        "precision": state.precision,
        "steps": state.step,
        "train_rows": state.rows,
        **({"rows_left_out": state.left_out} if state.left_out else {}),
        **({"n_sites": cfg.n_sites, "site_scales": _site_scales(norm, cfg.n_sites)} if cfg.n_sites > 1 else {}),
        "lr": train_cfg.resolved_lr(n_features),
        "seed": train_cfg.seed,
    }
    if threshold is not None:
        threshold = threshold * norm.scale_out
    if cfg.kind == "clt":
        return CrossLayerTranscoder.of_weights(
            weights, norm, threshold, cfg.n_sites, k=cfg.k, site_in=site_in, site_out=site_out, metadata=metadata
        )
    folded = norm.fold(weights)
    meta = DictionaryMeta(
        kind="sae" if cfg.kind == "crosscoder" else cfg.kind,
        activation="topk" if threshold is None else "jumprelu",
        d_in=source.d_in,
        d_out=source.d_out,
        d_sae=n_features,
        k=cfg.k,
        site_in=site_in,
        site_out=site_out,
        metadata=metadata,
    )
    return Dictionary(
        meta,
        W_enc=folded.enc.T.contiguous(),
        b_enc=folded.b_enc,
        W_dec=folded.dec,
        b_dec=folded.b_dec,
        W_skip=folded.skip,
        threshold=threshold,
    )


def _site_scales(norm: Normalisation, n_sites: int) -> list[float]:
    spread = torch.ones(n_sites) if norm.spread_out is None else norm.spread_out.view(n_sites, -1)[:, 0]
    return [norm.scale_out * value for value in spread.tolist()]
