"""Configs of well-known models, so that a study of one can be planned before it was ever fetched.

Each file of `configs/` is a family: ``common`` fields, and per size the fields that `shapes.shapes_of` reads. A test
holds every model to its published number of parameters. Torch-free.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any


def known_config(repo: str) -> dict[str, Any] | None:
    """The fields of ``config.json`` that sizes follow from, of a hub id (``Qwen/Qwen2.5-3B``); None of an unknown one.

    Of multimodal Gemma 3 models it is the text part's.
    """
    found = _configs().get(repo.lower())
    return None if found is None else dict(found)


def known_models() -> tuple[str, ...]:
    """Every hub id, family by family."""
    return tuple(repo for family in _families() for _, repos in _models(family) for repo in repos)


def meant_models(repo: str, most: int = 3) -> list[str]:
    """Known hub ids that a wrong one may have meant: those whose name has the given one in it, else the nearest."""
    from mechstudy.core.errors import nearest

    name = repo.rpartition("/")[2].lower()
    names = {known.rpartition("/")[2].lower(): known for known in known_models()}
    found = [known for tail, known in names.items() if len(name) > 3 and name in tail]
    guess = None if found else nearest(name, names)
    return found[:most] or ([names[guess.lower()]] if guess else [])


@functools.cache
def _configs() -> dict[str, dict[str, Any]]:
    return {repo.lower(): config for family in _families() for config, repos in _models(family) for repo in repos}


def _families() -> list[dict[str, Any]]:
    folder = files("mechstudy.models") / "configs"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
    return [json.loads((folder / name).read_text()) for name in names]


def _models(family: dict[str, Any]) -> list[tuple[dict[str, Any], list[str]]]:
    """(config, hub ids) of each size."""
    found = []
    for size, fields in family["sizes"].items():
        own = {name: value for name, value in fields.items() if name != "repos"}
        repos = fields.get("repos") or [repo.format(size=size) for repo in family["repos"]]
        found.append((family["common"] | own, repos))
    return found
