"""Labels of a run's features from a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from mechstudy.api.runs import Run, open_run
from mechstudy.core.errors import MechstudyError
from mechstudy.core.notices import counted, warn
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.features import asked_labels as asked
from mechstudy.features.endpoint import Endpoint
from mechstudy.features.given_labels import given_labels
from mechstudy.interventions.features import Features, features_at

_LISTED = 8  # recorded features named beside one that is not
_SCHEMA = {
    "feature": pl.String, "label": pl.String, "score": pl.Float64, "shuffled": pl.Float64, "n_fires": pl.Int64,
    "n_other": pl.Int64, "n_same_word": pl.Int64, "model": pl.String,
}  # fmt: skip


def ask_labels(
    run: Run | str | Path,
    endpoint: str,
    model: str,
    *,
    features: Features | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    key_variable: str | None = None,
    timeout: float = 60.0,
    max_tokens: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Ask a model behind an OpenAI-compatible endpoint for labels of a run's features, and score them.

        ms.ask_labels("runs/demo", "http://127.0.0.1:8000/v1", "qwen3", limit=20)
        ms.open_run("runs/demo").features  # then has asked_label, asked_score and asked_shuffled

    Texts from the run's corpus and tokens are sent to the endpoint, and to nothing else. A label is made from one half
    of a feature's examples and scored on the other among windows of other features (see `features.ask_labels` for what
    is known of these); the judge of the score is the endpoint itself. Labels are kept after each answer, and another
    call asks only for what is missing. No artifact changes.

    Args:
        run: a run, or its folder.
        endpoint: address up to and without ``/chat/completions``, of llama.cpp, vLLM, Ollama or a service.
        model: its name there.
        features: which, such as ``["13/1741"]`` or ``graph.top(10)``; by default all that the run recorded.
        limit: so many of them at most, those of largest influence.
        out: the file of labels; by default ``asked_labels.json`` in the run's folder, which `Run.features` reads.
        key_variable: environment variable with the key; by default OPENAI_API_KEY, if it is set.
        timeout: seconds that a request may stay without a byte.
        max_tokens: of an answer.
        seed: of the windows of other features and their order.
        progress: receives progress.

    Returns:
        A row for each feature that was asked for: feature, label (None without examples or a usable answer), score,
        shuffled (another feature's label on the same texts), n_fires and n_other (texts that it was scored on),
        n_same_word, model. See `AskedLabel`.

    Raises:
        MechstudyError: the run has recorded no such features, or the endpoint fails (see `Endpoint.ask`).
    """
    server = Endpoint.with_key_of(key_variable, endpoint, model, timeout=timeout, max_tokens=max_tokens)
    run, progress = run if isinstance(run, Run) else open_run(run), progress or NullProgress()
    file = _file(run, out)
    chosen = chosen_features(run, features, limit)
    kept = asked.read_asked(file)
    progress.log(f"texts of {counted(len(chosen), 'feature')} go to {server.host}; labels are kept in {file}")
    keep = partial(asked.write_asked, file)
    made = asked.ask_labels(server, run.feature_pages, chosen, kept, keep, seed=seed, progress=progress)
    pages = {asked.name_of(page): page for page in run.feature_pages}
    rows = [
        {"feature": name} | (asdict(made[name]) if _is_current(made.get(name), model, pages[name]) else {})
        for name in chosen
    ]
    return pl.DataFrame([{column: row.get(column) for column in _SCHEMA} for row in rows], schema=_SCHEMA)


def take_labels(run: Run | str | Path, place: str | Path) -> pl.DataFrame:
    """Take labels that others gave the features of a run's graphs, such as those of a published dictionary.

        ms.take_labels("runs/demo", "explanations/")  # of Neuronpedia's exports or delphi's, or {"13/1741": "plurals"}

    They are kept beside those of `ask_labels`, in place of earlier ones of the same features, and have no score. No
    artifact changes.

    Args:
        run: a run, or its folder.
        place: a file, or a folder of them: Neuronpedia's explanations (.jsonl, .jsonl.gz), delphi's
            (``*_latent7.txt``), or a JSON object of texts by feature. Which dictionary they are of is not in these
            files: features are matched by layer and number.

    Returns:
        feature, label and who gave it (``model``), of each feature that now has one.

    Raises:
        MechstudyError: no such place, no labels in it, or none of a feature that the run recorded.
    """
    run = run if isinstance(run, Run) else open_run(run)
    place = Path(place).expanduser()
    found = given_labels(place)
    pages: Mapping[str, Mapping[str, Any]] = {asked.name_of(page): page for page in run.feature_pages}
    taken = {name: asked.AskedLabel(*found[name], asked.page_id(pages[name])) for name in pages if name in found}
    if not taken:
        raise MechstudyError(
            f"none of the {counted(len(found), 'label')} is of a feature of this run's graphs",
            where=str(place),
            facts={
                "labels": f"{', '.join(list(found)[:_LISTED])} ...",
                "features": f"{', '.join(list(pages)[:_LISTED])} ...",
            },
            fix="labels of this run's dictionaries",
        )
    if left := [name for name in found if name not in taken]:
        some = f"{', '.join(left[:_LISTED])}{' ...' if len(left) > _LISTED else ''}"
        warn(f"{counted(len(left), 'label')} left out, of features that the run has not recorded: {some}")
    file = run.path / asked.ASKED
    asked.write_asked(file, asked.read_asked(file) | taken)
    return pl.DataFrame([{"feature": name, "label": one.label, "model": one.model} for name, one in taken.items()])


def chosen_features(run: Run, features: Features | None, limit: int | None) -> list[str]:
    """Names of recorded features, those of largest influence first unless they are named.

    Raises:
        MechstudyError: the run has recorded none, or not those that are named.
    """
    pages: Mapping[str, Mapping[str, Any]] = {asked.name_of(page): page for page in run.feature_pages}
    if not pages:
        raise MechstudyError(
            "this run has recorded no features of graphs", where=str(run.path), fix="`mechstudy run` with its study"
        )
    if limit is not None and limit < 1:
        raise MechstudyError(f"a limit of {limit} leaves no feature", fix="a limit of at least 1")
    ranked = sorted(pages, key=lambda name: -asked.influence_of(pages[name]))
    names = ranked if features is None else [f"{one.layer}/{one.feature}" for one in features_at(features)]
    for name in names:
        if name not in pages:
            raise MechstudyError(
                f"this run has not recorded feature {name}", where=str(run.path),
                facts={"recorded": f"{len(pages):,} features: {', '.join(ranked[:_LISTED])} ..."},
                fix="one of the features of its graphs",
            )  # fmt: skip
    return list(dict.fromkeys(names))[:limit]


def _is_current(label: asked.AskedLabel | None, model: str, page: Mapping[str, Any]) -> bool:
    return label is not None and (label.model, label.page) == (model, asked.page_id(page))


def _file(run: Run, out: str | Path | None) -> Path:
    if out is None:
        return run.path / asked.ASKED
    file = Path(out).expanduser()
    if file.is_dir():
        raise MechstudyError("this is a folder, and labels are a file", where=str(file), fix=f"{file / asked.ASKED}")
    if not file.parent.is_dir():
        raise MechstudyError("there is no such folder", where=str(file.parent), fix="make it, or choose another file")
    return file
