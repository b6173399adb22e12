"""Seeds: every draw comes from a generator seeded by (study seed, unit, purpose)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechstudy.core.jsonio import canonical_json

if TYPE_CHECKING:
    import numpy
    import torch


def seed_for(study_seed: int, unit: str, purpose: str) -> int:
    """A 63-bit seed that depends only on the three values (sha256)."""
    digest = hashlib.sha256(canonical_json([study_seed, unit, purpose]).encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    _note(unit, purpose, seed)
    return seed


def torch_generator(study_seed: int, unit: str, purpose: str, device: str = "cpu") -> torch.Generator:
    """A torch generator for one purpose of one unit."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_for(study_seed, unit, purpose))


def numpy_generator(study_seed: int, unit: str, purpose: str) -> numpy.random.Generator:
    """A numpy generator (PCG64) for one purpose of one unit."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(seed_for(study_seed, unit, purpose)))


_MOST_PURPOSES = 64
_drawn: dict[str, dict[str, int]] = {}


def _note(unit: str, purpose: str, seed: int) -> None:
    """Counts purposes that differ only in numbers as one: ``order of epoch #``, with the first seed."""
    name = re.sub(r"\d+", "#", f"{unit}: {purpose}")
    if name in _drawn:
        _drawn[name]["times"] += 1
    elif len(_drawn) < _MOST_PURPOSES:
        _drawn[name] = {"times": 1, "first": seed}


def drawn() -> dict[str, dict[str, int]]:
    """The seeds drawn by this process since `forget_drawn`, by unit and purpose, for a manifest."""
    return {name: dict(_drawn[name]) for name in sorted(_drawn)}


def forget_drawn() -> None:
    """Starts an empty record for another artifact."""
    _drawn.clear()


def seeds_in(spec: Any, at: str = "") -> dict[str, int]:
    """Every seed of a spec by its dotted path. `seed_for` derives all others from them."""
    seeds: dict[str, int] = {}
    items = spec.items() if isinstance(spec, Mapping) else enumerate(spec) if isinstance(spec, list | tuple) else ()
    for key, value in items:
        path = f"{at}.{key}" if at else str(key)
        is_seed = str(key) == "seed" or at.rpartition(".")[2] == "seeds"
        if is_seed and isinstance(value, int) and not isinstance(value, bool):
            seeds[path] = value
        else:
            seeds |= seeds_in(value, path)
    return seeds
