"""A study of toy units with every kind of retention in it, in a folder of its own, for tests of archive and clean."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mechstudy.planning import opened_study as opening
from mechstudy.planning.opened_study import OpenedStudy, open_study
from mechstudy.runner.study_run import execute
from mechstudy.study.unit import Unit
from tests.support.toy_model import write_model
from tests.support.toy_units import unit

PROMPT = {
    "clean": "The keys to the cabinet",
    "corrupted": "The key to the cabinet",
    "answer": " are",
    "wrong_answer": " is",
    "positions": {"subject": "key"},
}
STUDY = (
    "name: toy\n"
    "model: {source: 'path:model'}\n"
    "behaviours:\n"
    "  - {name: country_capital, n_train: 4, n_test: 4}\n"
    "corpus: {source: 'text:texts/a.txt', tokens: 4096}\n"
    "dictionaries: {layers: 1-3}\n"
    "compute: {device: cpu}\n"
)


def toy_study(**values: Any) -> list[Unit]:
    """model, corpus and two captures whose payload may go, trainings, pages (reads the corpus) and a report."""
    made: dict[str, Any] = {"entry": "payload", "payload": ("*.bin",), "version": 1}
    return [
        unit("model"),
        unit("prompts[b]", ["model"], value=values.get("prompts", 0)),
        unit("corpus", ["model"], retention="regenerate", value=values.get("corpus", 0), **made),
        *[
            unit(f"capture[{i}]", ["corpus"], retention=values.get("capture", "regenerate"), rows_of=i, **made)
            for i in range(2)
        ],
        *[
            unit(f"train[{i}]", [f"capture[{i}]"], entry="reads_any_payload", value=values.get("train", 0))
            for i in range(2)
        ],
        unit("pages", ["corpus", "train[0]"], entry="reads_any_payload", optional_inputs=True),
        unit("report", ["corpus", "train[0]", "train[1]", "pages"], optional_inputs=True, reads_payload=False),
    ]


def make_folder(root: Path) -> Path:
    """A folder with the study's file, its text, and a model that is nothing but a config and an empty weights file."""
    write_model(root / "model")
    (root / "texts").mkdir()
    (root / "texts" / "a.txt").write_text("Some text.\n")
    (root / "study.yaml").write_text(STUDY)
    return root


def open_toy(folder: Path, monkeypatch: pytest.MonkeyPatch, run: Path | None = None, **values: Any) -> OpenedStudy:
    """The toy study of a folder, opened; its run is ``folder/run``."""
    monkeypatch.setattr(opening, "build_units", lambda *_: toy_study(**values))
    return open_study(folder / "study.yaml", out=run or folder / "run")


def sums(run: Path, *, payload: bool = True) -> dict[str, Any]:
    """Artifact and file -> sha256 of the bytes on disk, and what each manifest calls discarded."""
    from mechstudy.store.artifacts import ArtifactStore
    from mechstudy.store.manifest import sha256_of

    found: dict[str, Any] = {}
    for artifact in ArtifactStore(run / "artifacts").all():
        gone = artifact.manifest.get("discarded", [])
        if payload:
            found[f"{artifact.name}: discarded"] = tuple(gone)
        for name in artifact.manifest["files"]:
            if name not in gone and (payload or not name.endswith(".bin")):
                found[f"{artifact.name}/{name}"] = sha256_of(artifact.path / name)
    return found


def finished_study(folder: Path) -> Path:
    """A toy study in a new folder, run to its end."""
    with pytest.MonkeyPatch.context() as patch:
        make_folder(folder)
        execute(open_toy(folder, patch))
    return folder


def copy_of(finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> OpenedStudy:
    """A finished study's copy, opened."""
    shutil.copytree(finished, folder, symlinks=True)
    return open_toy(folder, monkeypatch)
