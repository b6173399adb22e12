"""Features of a run in the files of other tools: delphi and Neuronpedia."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mechstudy import corpus, models
from mechstudy.api.asked_labels import chosen_features
from mechstudy.api.runs import Run, open_run
from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.core.files import disk_errors
from mechstudy.core.progress import Progress
from mechstudy.corpus.token_rows import TOKENS_FILE
from mechstudy.dictionaries.fitted import all_fitted
from mechstudy.dictionaries.neurons import Basis, Neurons
from mechstudy.features.asked_labels import name_of
from mechstudy.features.delphi import write_delphi
from mechstudy.features.neuronpedia_features import CREATOR, Export, identifier, write_neuronpedia
from mechstudy.interventions.features import Features
from mechstudy.models.language_model import LanguageModel
from mechstudy.store.artifacts import Artifact
from mechstudy.study import finished

ExportFormat = Literal["delphi", "neuronpedia"]
_NEURONS = "neurons"


def export_features(
    run: Run | str | Path,
    folder: str | Path,
    format: ExportFormat,
    *,
    model: LanguageModel | str | None = None,
    device: str = "auto",
    features: Features | None = None,
    limit: int | None = None,
    name: str | None = None,
    creator: str = CREATOR,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[str]:
    """Write the features of a run's graphs for delphi (explaining and scoring) or Neuronpedia (browsing).

        ms.export_features("runs/demo", "for-delphi", "delphi", model=model)
        ms.export_features("runs/demo", "for-neuronpedia", "neuronpedia")

    For delphi all activations on the documents that the run searched are computed again, with the model: a run keeps
    windows of examples only. For Neuronpedia the run's record is enough. The explanation of a feature is the label that
    an endpoint gave (`ask_labels`), else its rule where that is claimed; others have none.

    Args:
        run: a run, or its folder.
        folder: a new or empty one.
        format: ``delphi`` or ``neuronpedia``.
        model: the run's, for delphi, or its source; by default the source that the run names.
        device: of a model that is loaded.
        features: which; by default all that the run recorded.
        limit: so many of them at most, those of largest influence.
        name: of the source set at Neuronpedia; by default the study's.
        creator: id of the user of Neuronpedia whose features they become; by default that of a new local instance.
        batch_tokens: tokens of a forward pass.
        progress: receives progress.

    Returns:
        Names of the modules (delphi) or sources (Neuronpedia) that were written.

    Raises:
        MechstudyError: no such format, a folder that holds files, features that the run has not recorded, or a corpus
            or dictionaries that are gone or were made again since.
    """
    if format not in get_args(ExportFormat):
        raise MechstudyError(
            f"there is no format {format!r}", facts={"formats": ", ".join(get_args(ExportFormat))},
            fix=nearest(format, get_args(ExportFormat)) or "delphi",
        )  # fmt: skip
    run, place = run if isinstance(run, Run) else open_run(run), Path(folder).expanduser()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise MechstudyError("the folder must be new or empty", where=str(place), fix="another folder")
    names = set(chosen_features(run, features, limit))
    pages = [page for page in run.feature_pages if name_of(page) in names]
    said = {(int(p["layer"]), int(p["feature"])): text for p in pages if (text := _explanation(run, p)) is not None}
    [recorded] = finished.of(run.artifacts, "features").values()
    searched = _Searched.of(run, recorded)
    with disk_errors(place):
        if format == "neuronpedia":
            export = Export(
                identifier(str(run.model.get("name") or "model")), identifier(name or str(run.study["name"])), creator,
                str(recorded.manifest["finished"]), int(run.model["n_layers"]), int(run.model.get("d_mlp") or 0),
                searched.source, searched.n_documents, searched.context,
            )  # fmt: skip
            return write_neuronpedia(place, pages, said, export)
        loaded = _model(run, recorded, model, device)
        return _to_delphi(place, run, recorded, loaded, pages, said, searched, batch_tokens, progress)


@dataclass(frozen=True)
class _Searched:
    """The text that examples were searched in."""

    corpus: Artifact
    source: str
    n_documents: int
    context: int

    @classmethod
    def of(cls, run: Run, recorded: Artifact) -> _Searched:
        made = _corpus_of(run, recorded)
        summary = made.read_json("corpus.json")
        context = int(summary["context"])
        rows = int(recorded.read_json("features.json")["rows_searched"])
        return cls(made, str(summary["source"]), rows // context, context)


def _model(run: Run, recorded: Artifact, model: LanguageModel | str | None, device: str) -> LanguageModel:
    """The model that is given, or that of a source, in the dtype of the run's search."""
    if isinstance(model, LanguageModel):
        return model
    dtype = str(recorded.manifest["spec"]["model_dtype"])
    return models.load_model(model or str(run.model.get("source") or ""), dtype=dtype, device=device)


def _to_delphi(
    place: Path,
    run: Run,
    recorded: Artifact,
    model: LanguageModel,
    pages: Sequence[Mapping[str, Any]],
    said: Mapping[tuple[int, int], str],
    searched: _Searched,
    batch_tokens: int,
    progress: Progress | None,
) -> list[str]:
    source = str(run.model.get("source") or "")
    config = {
        "dataset_repo": searched.source, "dataset_split": "train", "dataset_name": "", "dataset_column": "text",
        "batch_size": max(1, batch_tokens // searched.context),
        "model_name": source.removeprefix("hf:").partition("@")[0] if source.startswith("hf:") else model.name,
    }  # fmt: skip
    by_layer: dict[int, list[int]] = defaultdict(list)
    for page in pages:
        by_layer[int(page["layer"])].append(int(page["feature"]))
    tokens = corpus.Corpus.load(searched.corpus.path).train[: searched.n_documents].long()
    bases = _bases(run, recorded, pages, model)
    return write_delphi(
        place, model, bases, by_layer, tokens, said, config, batch_tokens=batch_tokens, progress=progress
    )


def _explanation(run: Run, page: Mapping[str, Any]) -> str | None:
    asked, rule = run.asked_labels.get(name_of(page)), page.get("label") or {}
    if asked is not None:
        return asked.label
    below = "below zero " if rule.get("sign") == -1 else ""
    return f"{below}{rule['rule']}" if rule.get("claimed") else None


def _corpus_of(run: Run, recorded: Artifact) -> Artifact:
    """The corpus that examples were searched in."""
    ids = {one["id"] for one in recorded.manifest["inputs"].values()}
    for one in run.artifacts.values():
        if one.id in ids and TOKENS_FILE in one.manifest["files"]:
            return one
    raise MechstudyError(
        "the corpus that the features were searched in is gone, or was made again", where=str(run.path),
        fix="`mechstudy run` with its study",
    )  # fmt: skip


def _bases(
    run: Run, recorded: Artifact, pages: Sequence[Mapping[str, Any]], model: LanguageModel
) -> Mapping[int, Basis]:
    """The dictionary, or the neurons, that each layer's pages are of."""
    neurons = {int(page["layer"]) for page in pages if page["kind"] == _NEURONS}
    wanted = {int(page["layer"]) for page in pages} - neurons
    same = finished.dictionary_checksums(run.artifacts, recorded)
    if gone := sorted(wanted - set(same)):
        raise MechstudyError(
            f"the dictionary of layer {gone[0]} is gone, or was made again since the features were searched",
            where=str(run.path), fix="`mechstudy run` with its study",
        )  # fmt: skip
    fitted = all_fitted(model, {layer: run.dictionaries[layer] for layer in wanted})
    return {**fitted, **{layer: Neurons(model, layer) for layer in neurons}}
