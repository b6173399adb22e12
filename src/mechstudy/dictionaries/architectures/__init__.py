"""Sparse architectures by name. A new one is one file here and one line below."""

from __future__ import annotations

from mechstudy.dictionaries.architectures.base import Architecture
from mechstudy.dictionaries.architectures.batchtopk import BatchTopK
from mechstudy.dictionaries.architectures.gated import Gated
from mechstudy.dictionaries.architectures.jumprelu import JumpReLU
from mechstudy.dictionaries.architectures.relu import ReLU
from mechstudy.dictionaries.architectures.topk import TopK
from mechstudy.dictionaries.config import DictionaryConfig

__all__ = ["Architecture", "architecture_of"]


def architecture_of(cfg: DictionaryConfig) -> Architecture:
    """The architecture of a configuration."""
    penalty = cfg.resolved_penalty()
    made: dict[str, Architecture] = {
        "topk": TopK(cfg.k),
        "batchtopk": BatchTopK(cfg.k),
        "relu": ReLU(cfg.k, penalty),
        "gated": Gated(cfg.k, penalty),
        "jumprelu": JumpReLU(cfg.k, penalty, cfg.bandwidth),
    }
    return made[cfg.activation]
