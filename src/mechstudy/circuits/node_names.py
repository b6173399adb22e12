"""Names of nodes that prompts with other tokens and lengths share.

Prompts differ in their tokens, so a node is identified by its type, layer and feature and by the name of its position:
``subject``, ``last``, ...; tokens without a name are counted from the nearest one that has one: ``subject+1``,
``last-2``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OTHER = "other"
ANSWER = "answer tokens"  # the tokens of a whole answer that are read after the prompt
_RELATIVE = re.compile(r"[+-]\d+$")


def position_names(positions: Mapping[str, int], n_positions: int, n_prompt: int | None = None) -> list[str]:
    """The name of every token position; where two names share a token, the first one counts.

    Tokens after the ``n_prompt`` of the prompt are those of an answer.
    """
    n_prompt = n_positions if n_prompt is None else n_prompt
    names = [OTHER] * n_prompt + [ANSWER] * (n_positions - n_prompt)
    for name, index in reversed(list(positions.items())):
        names[index] = name
    return names


def aligned_names(positions: Mapping[str, int], n_positions: int, n_prompt: int | None = None) -> list[str]:
    """`position_names` with unnamed tokens named relative to the nearest named one, the left one of two as near.

    ``other`` are only the tokens of prompts that name no token, and those whose relative name is another token's own.
    """
    names = position_names(positions, n_positions, n_prompt)
    anchors = [at for at, name in enumerate(names) if name not in (OTHER, ANSWER)]
    if not anchors:
        return names
    relative = [_relative(i, names, anchors) if name == OTHER else name for i, name in enumerate(names)]
    return [OTHER if own == OTHER and name in positions else name for own, name in zip(names, relative, strict=True)]


def _relative(index: int, names: Sequence[str], anchors: Sequence[int]) -> str:
    nearest = min(anchors, key=lambda at: (abs(index - at), at))
    return f"{names[nearest]}{index - nearest:+d}"


def is_named(node: Mapping[str, Any]) -> bool:
    """Whether prompts name a node's position: it is not ``relative`` to one that they name, ``other``, or an answer's.

    A name alone does not tell: prompts may call a position ``digit-1``.
    """
    return node["position"] not in (OTHER, ANSWER) and not node.get("relative", False)


def in_order(used: Iterable[str], positions: Sequence[str]) -> list[str]:
    """Named positions from left to right, with those of ``used`` that are relative to them."""
    place = {name: i for i, name in enumerate(positions)}
    relative: dict[str, tuple[int, int]] = {}
    for name in used:
        if name not in place and (match := _RELATIVE.search(name)) and (anchor := name[: match.start()]) in place:
            relative[name] = (place[anchor], int(match[0]))
    every = relative | {name: (i, 0) for name, i in place.items()}
    return sorted(every, key=every.__getitem__)


def node_id(kind: str, layer: int | None = None, feature: int | None = None, position: str | None = None) -> str:
    """Identity of an aggregated node, for example ``f.12.345@subject`` or ``error.3@last``."""
    return {
        "feature": f"f.{layer}.{feature}@{position}",
        "error": f"error.{layer}@{position}",
        "token": f"token@{position}",
        "bias": f"bias.{layer}",
        "logit": "logit",
    }[kind]
