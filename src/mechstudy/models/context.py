"""The number of positions that a model has, or was trained on. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Families with a learned vector for each position: one token more is an index error. Others rotate and go on.
_LEARNED = {"gpt2": "n_positions"}
_EXTENDED = ("linear", "dynamic", "yarn")  # rope scalings whose factor the maximum may not include


@dataclass(frozen=True)
class ContextLength:
    """Positions of a model.

    Attributes:
        n: how many.
        field: of ``config.json``, which says so.
        learned: whether there are no more; a rotary model runs on, outside of what it was trained on.
    """

    n: int
    field: str
    learned: bool

    def exceeded(self, n_tokens: int) -> str:
        """A sentence about a text of that many tokens."""
        return f"{n_tokens} tokens, the model has {self.n} positions ({self.field})"


def context_length(config: Mapping[str, Any]) -> ContextLength | None:
    """The positions of the model that a Hugging Face ``config.json`` describes; None where it does not say."""
    nested = config.get("text_config")
    if isinstance(nested, Mapping) and "max_position_embeddings" not in config:
        return context_length(nested)
    learned = _LEARNED.get(str(config.get("model_type")))
    field = learned or "max_position_embeddings"
    n = config.get(field)
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        return None
    if learned:
        return ContextLength(n, field, True)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else None
    if kind in _EXTENDED:
        original = scaling.get("original_max_position_embeddings") or n
        n = max(n, int(float(scaling.get("factor") or 1) * original))
    return ContextLength(n, field, False)
