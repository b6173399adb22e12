"""Configs of well-known models, so that a study can be planned before its model is fetched. Imports no torch.

Each file of `configs/` is a family: ``common`` fields, and for each size the fields that `shapes.shapes_of` reads. A
test checks every model's published number of parameters.
"""

from __future__ import annotations

import functools
import json
import re
from importlib.resources import files
from typing import Any

from mechstudy.core.errors import nearest


def known_config(repo: str) -> dict[str, Any] | None:
    """The fields of a model's ``config.json`` that determine its sizes; None if the model is not a well-known one.

    Multimodal Gemma 3 models are described by their text part.

    Args:
        repo: a hub id, such as ``Qwen/Qwen2.5-3B``, in upper or lower case.
    """
    config = _configs().get(repo.lower())
    return None if config is None else dict(config)


def known_models() -> tuple[str, ...]:
    """Hub ids of all well-known models, family by family."""
    return tuple(repo for family in _families() for _, repos in _models(family) for repo in repos)


def similar_models(repo: str, most: int = 3) -> list[str]:
    """Well-known hub ids that contain the name of a wrong one, else the one whose name is nearest."""
    name = repo.rpartition("/")[2].lower()
    ids = {model.rpartition("/")[2].lower(): model for model in known_models()}
    longer = [model for known_name, model in ids.items() if len(name) > 3 and name in known_name]
    guess = None if longer else nearest(name, ids)
    return longer[:most] or ([ids[guess.lower()]] if guess else [])


def same_model(one: str, other: str) -> bool:
    """Whether two names can be of one model: owners and spelling do not count.

    ``Qwen/Qwen3-4B`` is the model of ``models/qwen3_4b``, and not of ``Qwen3-4B-Base``.
    """
    ours, theirs = (_plain(name) for name in (one, other))
    return ours == theirs


def _plain(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].lower())
    return {"gpt2small": "gpt2"}.get(plain, plain)


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    return {repo.lower(): config for family in _families() for config, repos in _models(family) for repo in repos}


def _families() -> list[dict[str, Any]]:
    folder = files("mechstudy.models") / "configs"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
    return [json.loads((folder / name).read_text()) for name in names]


def _models(family: dict[str, Any]) -> list[tuple[dict[str, Any], list[str]]]:
    """(config, hub ids) of each size."""
    models = []
    for size, fields in family["sizes"].items():
        own = {name: value for name, value in fields.items() if name != "repos"}
        repos = fields.get("repos") or [repo.format(size=size) for repo in family["repos"]]
        models.append((family["common"] | own, repos))
    return models
