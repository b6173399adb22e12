"""Every draw comes from a generator seeded by (study seed, unit, purpose)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mechstudy.core.jsonio import canonical_json

if TYPE_CHECKING:
    import numpy
    import torch


def seed_for(study_seed: int, unit: str, purpose: str) -> int:
    """A 63-bit seed: the same everywhere and for ever for the same three values (sha256)."""
    digest = hashlib.sha256(canonical_json([study_seed, unit, purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(study_seed: int, unit: str, purpose: str, device: str = "cpu") -> torch.Generator:
    """A torch generator for one purpose of one unit."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_for(study_seed, unit, purpose))


def numpy_generator(study_seed: int, unit: str, purpose: str) -> numpy.random.Generator:
    """A numpy generator (PCG64) for one purpose of one unit."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(seed_for(study_seed, unit, purpose)))
