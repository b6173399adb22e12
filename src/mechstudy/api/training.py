"""Training a dictionary on rows of activations."""

from __future__ import annotations

from typing import Any

from mechstudy import dictionaries
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.stored import AnyPath


def train(
    rows: Any,
    config: DictionaryConfig | None = None,
    training: TrainConfig | None = None,
    *,
    site_in: str = "",
    site_out: str = "",
    out: AnyPath | None = None,
    checkpoint: AnyPath | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Dictionary | CrossLayerTranscoder:
    """Train a sparse dictionary: an SAE, a transcoder, a crosscoder or a cross-layer transcoder.

        sae = ms.train(rows, ms.DictionaryConfig(kind="sae", k=32), ms.TrainConfig(steps=1000))
        acts = ms.capture(model, texts, sites=["mlp_in.13", "mlp_out.13"])
        transcoder = ms.train((acts["mlp_in.13"], acts["mlp_out.13"]), ms.DictionaryConfig(kind="transcoder"),
                              site_in="mlp_in.13", site_out="mlp_out.13")

    Args:
        rows: inputs [N, d] (a tensor or NumPy array), a pair (inputs, targets), any iterable of batches of either, or
            a reader of stored activations. For a crosscoder or a clt [N, n_sites, d].
        config: the architecture; by default a TopK SAE with 32 active features.
        training: the recipe; by default `TrainConfig()`.
        site_in: what the inputs are, such as ``mlp_in.13``; kept in the file, and needed for graphs.
        site_out: what the targets are; for an SAE ``site_in``.
        out: a folder for scalars.jsonl and TensorBoard.
        checkpoint: file to save to, from which an interrupted training resumes.
        progress: receives messages.
        device: where training runs.

    Raises:
        MechstudyError: too few rows, an impossible width or k, missing targets, NaN or infinity, a loss that diverged.
    """
    return dictionaries.train(
        config or DictionaryConfig(kind="sae"),
        training or TrainConfig(),
        rows,
        site_in=site_in,
        site_out=site_out,
        out=out,
        checkpoint=checkpoint,
        progress=progress,
        device=device,
    )
