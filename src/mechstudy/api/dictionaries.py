"""Dictionaries by layer, of finished runs too, and training one on rows of activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mechstudy import dictionaries
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.hub import is_hub
from mechstudy.dictionaries.formats.recognise import Source
from mechstudy.dictionaries.loading import DictionarySet, Place, checked_places
from mechstudy.dictionaries.stored import AnyPath
from mechstudy.study import finished as artifacts


def load_dictionaries(
    source: Place | Iterable[Place] | Mapping[int, Place],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    lazy: bool = False,
) -> DictionarySet:
    """Load dictionaries (SAEs or transcoders) by layer.

        ms.load_dictionaries("runs/demo")  # all that a run trained
        ms.load_dictionaries("my-dictionary")  # one folder, of any format that is read
        ms.load_dictionaries("transcoders")  # a folder of such folders, or of layer_*.safetensors
        ms.load_dictionaries("my-clt")  # every layer of a cross-layer transcoder
        ms.load_dictionaries(["layer12", "hf:owner/name/layer13", dictionary])
        ms.load_dictionaries({12: "a", 13: "b"})  # where the files do not name their layer
        ms.load_dictionaries("hf:mwhanna/qwen3-4b-transcoders", lazy=True)  # a set larger than memory

    Args:
        source: as in the examples; a run's latest artifact of each layer is loaded.
        device: where the weights go; the model's, for graphs and interventions.
        dtype: None keeps the file's.
        lazy: leave encoders and decoders in their files, and read what each use needs.

    Raises:
        MechstudyError: nothing is there, a file is damaged, two read one layer, one names no layer,
            or another than the mapping gives it.
    """
    source = checked_places(source)
    if isinstance(source, Mapping):
        return dictionaries.load_dictionaries(source, device=device, dtype=dtype, lazy=lazy)
    places = [place for one in source for place in _places(one)]
    return dictionaries.load_dictionaries(places, device=device, dtype=dtype, lazy=lazy)


def _places(source: Place) -> list[Place]:
    """The folders of a run's dictionaries; anything else itself."""
    if isinstance(source, Dictionary | CrossLayerTranscoder | Source) or is_hub(str(source)):
        return [source]
    path = Path(source).expanduser()
    if not artifacts.is_run(path):
        return [path]
    places = artifacts.dictionary_places(artifacts.latest(path))
    if not places:
        raise MechstudyError(
            "this run has no finished dictionaries", where=str(path), fix="`mechstudy status` says what it is doing"
        )
    return [*places.values()]


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
