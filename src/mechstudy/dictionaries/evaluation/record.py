"""The evaluation of a trained dictionary as one flat JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mechstudy.core.progress import NullProgress, Progress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.model_effect import ForwardModel, language_model_effect
from mechstudy.dictionaries.evaluation.reconstruction import evaluate
from mechstudy.dictionaries.training.health import Health

EVALUATION_BATCH = 1024  # rows scored at a time


def evaluation_record(
    dictionary: Dictionary,
    architecture: DictionaryConfig,
    recipe: TrainConfig,
    held_out: Any,
    model: ForwardModel,
    token_rows: Int[Tensor, "n t"],
    *,
    layer: int,
    rows_read: Mapping[str, float | None],
    n_tokens: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a trained dictionary on held-out rows and inside its model.

    Args:
        dictionary: as training returned it, with `trained_as` in its metadata.
        architecture: its configuration.
        recipe: its training.
        held_out: rows that `evaluate` accepts; they are read twice.
        model: the model it was trained on.
        token_rows: held-out documents [n, T].
        layer: its layer.
        rows_read: what is known of the training rows (distinct_rows, train_sink_rows, mixing), copied into the record.
        n_tokens: tokens of `token_rows` to predict, in whole documents, at least one; None: all documents.
        progress: receives findings about the held-out L0.

    Returns:
        layer, kind, activation, sites, widths, k, steps, train_rows, health, frozen (of a control) and `rows_read`,
        followed by the scores of `evaluate` (n_rows under the name n_eval_rows) and of `language_model_effect`.
    """
    reconstruction = evaluate(dictionary, held_out, non_finite=recipe.non_finite)
    reconstruction["n_eval_rows"] = reconstruction.pop("n_rows")
    watch = Health(architecture, recipe)
    for finding in watch.held_out(reconstruction["l0"]):
        (progress or NullProgress()).log(f"{finding.text}; fix: {finding.fix}")
    n_documents = len(token_rows) if n_tokens is None else max(1, n_tokens // token_rows.shape[1])
    effect = language_model_effect(model, dictionary, token_rows[:n_documents].long())
    cfg = dictionary.cfg
    about = {
        "layer": layer,
        "kind": architecture.kind,
        "activation": cfg.metadata["trained_as"],
        "site_in": cfg.site_in,
        "site_out": cfg.site_out,
        "d_in": cfg.d_in,
        "d_out": cfg.d_out,
        "d_sae": cfg.d_sae,
        "k": architecture.k,
        "steps": recipe.steps,
        "train_rows": recipe.steps * recipe.batch_size,
        "health": cfg.metadata.get("health", []) + watch.as_json(),
        **({"frozen": recipe.frozen} if recipe.frozen else {}),
        **rows_read,
    }
    return about | reconstruction | effect
