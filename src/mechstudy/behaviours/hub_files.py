"""The files of a Hugging Face dataset that hold prompts: ``hf:owner/name[:config][:split][@revision]``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mechstudy.behaviours.readers import ENDINGS
from mechstudy.core.errors import MechstudyError
from mechstudy.core.sizes import human
from mechstudy.models import hub

PREFIX = "hf:"
MOST_BYTES = 1 << 30
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
_TEST = ("test", "validation", "valid", "val", "dev")  # by preference
_NOT_DATA = ("dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


@dataclass(frozen=True)
class DataFile:
    """A file, and the split that its rows are in; None where the rows are split by their groups."""

    path: Path
    split: str | None


@dataclass(frozen=True)
class _Dataset:
    repo: str
    config: str | None
    split: str | None
    revision: str | None

    @classmethod
    def parse(cls, name: str) -> _Dataset:
        rest, _, revision = name.removeprefix(PREFIX).partition("@")
        repo, *parts = rest.split(":")
        if len(parts) == 1 and parts[0] in _SPLITS:
            parts = ["", *parts]
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or len(parts) > 2:
            raise MechstudyError(
                f"{name!r} is not a dataset", fix="hf:OWNER/NAME[:CONFIG][:SPLIT][@REVISION]", where=name
            )
        config, split = (*parts, "", "")[:2]
        return cls(repo, config or None, split or None, revision or None)


def is_hub(name: str) -> bool:
    """Whether prompts are named as a dataset of the hub."""
    return name.startswith(PREFIX)


def hub_files(name: str) -> tuple[DataFile, ...]:
    """The data files of a dataset, fetched unless they are in the hub's cache.

    With a split, its files alone, and the rows are split by their groups. Without one, the files of ``train`` are the
    train prompts, and those of ``test`` (or else ``validation``) the test prompts.

    Raises:
        MechstudyError: not a dataset, one without data files, a configuration or split that it lacks, files of more
            than 1 GiB, or a hub that cannot be reached.
    """
    dataset = _Dataset.parse(name)
    folder = hub.cached_dataset(dataset.repo, revision=dataset.revision)
    if folder is not None:
        with suppress(MechstudyError):  # other files of it were fetched
            cached = [
                DataFile(folder / file, split) for file, split in _chosen(name, dataset, hub.listed_files(folder))
            ]
            if all(file.path.exists() for file in cached):
                return tuple(cached)
    sizes = hub.dataset_files(dataset.repo, revision=dataset.revision)
    chosen = _chosen(name, dataset, sizes)
    if (total := sum(sizes[file] for file, _ in chosen)) > MOST_BYTES:
        raise MechstudyError(
            f"its files are {human(total)}", where=name, fix="a configuration and split, or a file of the prompts alone"
        )
    folder = hub.download_dataset(dataset.repo, [file for file, _ in chosen], revision=dataset.revision)
    return tuple(DataFile(folder / file, split) for file, split in chosen)


def _chosen(name: str, dataset: _Dataset, files: Iterable[str]) -> list[tuple[str, str | None]]:
    """The files of the configuration and the split, in order."""
    data = sorted(filter(_is_data, files))
    if not data:
        raise MechstudyError("no data files", where=name, facts={"read": ", ".join(ENDINGS)}, fix="another dataset")
    configs = sorted({config for file in data if (config := _config(file)) is not None})
    if dataset.config is not None:
        data = [file for file in data if _config(file) == dataset.config or file.startswith(f"{dataset.config}.")]
    elif configs and not any(_config(file) is None for file in data):
        if len(configs) > 1:
            raise MechstudyError(
                "it has several configurations",
                where=name,
                facts={"configurations": ", ".join(configs)},
                fix=f"{PREFIX}{dataset.repo}:{configs[0]}",
            )
    else:
        data = [file for file in data if _config(file) is None]
    by_split: dict[str | None, list[str]] = {}
    for file in data:
        by_split.setdefault(_split(file), []).append(file)
    facts = {"configurations": ", ".join(configs), "splits": ", ".join(sorted(map(str, by_split)))}
    if dataset.split is not None:
        if dataset.split not in by_split:
            raise MechstudyError(
                f"there is no {dataset.config or ''} {dataset.split}".replace("  ", " "),
                where=name,
                facts=facts,
                fix="one of these",
            )
        return [(file, None) for file in by_split[dataset.split]]
    if not data:
        raise MechstudyError(
            f"there is no configuration {dataset.config!r}", where=name, facts=facts, fix="one of these"
        )
    test = next((split for split in _TEST if split in by_split), None)
    if "train" in by_split and test is not None:
        return [(file, part) for part, of in (("train", "train"), ("test", test)) for file in by_split[of]]
    return [(file, None) for file in data]


def _is_data(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix in ENDINGS and path.name not in _NOT_DATA and not any(p.startswith(".") for p in path.parts)


def _config(file: str) -> str | None:
    """The configuration that a file belongs to, by its folder; None for files of the root and of ``data``."""
    parts = [part for part in PurePosixPath(file).parts[:-1] if part != "data" and part not in _SPLITS]
    return parts[0] if parts else None


def _split(file: str) -> str | None:
    """The split that a file's name, or its folder, states."""
    path = PurePosixPath(file)
    words = [*re.split(r"[^a-z]+", path.stem.lower()), *reversed(path.parts[:-1])]
    return next((word for word in words if word in _SPLITS), None)
