"""Token positions by name, so that nodes of prompts with other tokens and lengths can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.node_names import ANSWER, OTHER, position_names
from mechstudy.core.errors import MechstudyError

ALL = "all"  # the position name that means every token
FIRST = "first token"  # the first token of a prompt, if it has no name


@dataclass(frozen=True)
class AlignedPrompt:
    """A prompt's tokens with the name of each, and its corrupted prompt's, with the place there of each; or none."""

    id: str
    tokens: tuple[int, ...]
    names: tuple[str, ...]
    corrupted: tuple[int, ...] = ()
    corrupted_at: tuple[int | None, ...] = ()

    @classmethod
    def of_pair(cls, pair: PromptPair) -> AlignedPrompt:
        """The clean prompt of a pair."""
        n = len(pair.clean_tokens)
        there = tuple(pair.corrupted_at(i) for i in range(n)) if pair.has_corrupted else ()
        return cls(pair.id, pair.clean_tokens, tuple(position_names(pair.positions, n)), pair.corrupted_tokens, there)

    @property
    def has_corrupted(self) -> bool:
        """Whether there is a corrupted prompt."""
        return bool(self.corrupted)

    @property
    def may_differ(self) -> tuple[bool, ...]:
        """Of each token, whether the corrupted run can hold something else at its place.

        A causal model computes the same from the part that both prompts begin with. A token without a place in the
        corrupted prompt has nothing to differ from.
        """
        pairs = zip(self.tokens, self.corrupted, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(self.corrupted)))
        return tuple(at is not None and not (at == i < shared) for i, at in enumerate(self.corrupted_at))


@dataclass(frozen=True)
class NamedPositions:
    """The position names of some prompts, which split the tokens of each: every token has one name.

    Where two names share a token, the first one counts. Tokens without a name are ``other``, but for a prompt's first,
    ``first token``: models use it as an attention sink, and what it holds would drown the means of the others. The
    single name ``all`` stands for every token.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[PromptPair]) -> NamedPositions:
        """Every name of the pairs from left to right, then ``other`` where some token has no name."""
        some_first = any(0 not in p.positions.values() for p in pairs)
        some_other = any(len({0, *p.positions.values()}) < len(p.clean_tokens) for p in pairs)
        named = positions_left_to_right(pairs)
        return cls((*([FIRST] if some_first else []), *named, *([OTHER] if some_other else [])))

    @classmethod
    def whole(cls) -> NamedPositions:
        """All tokens as one position."""
        return cls((ALL,))

    def numbers(self, prompts: Sequence[PromptPair | AlignedPrompt]) -> Int[Tensor, "b t"]:
        """The number of every token's name in ``names``; the (clean) prompts have one length.

        Tokens of an answer that is read after the prompt have -1.

        Raises:
            MechstudyError: a token's name is not among ``names``.
        """
        number = {name: i for i, name in enumerate(self.names)} | {ANSWER: -1}
        rows = []
        for prompt in map(aligned, prompts):
            names = [ALL] * len(prompt.tokens) if self.names == (ALL,) else list(prompt.names)
            if FIRST in number and names[0] == OTHER:
                names[0] = FIRST
            if missing := [name for name in names if name not in number]:
                raise MechstudyError(
                    f"prompt {prompt.id} has a position {missing[0]!r} that the nodes do not have",
                    facts={"positions": ", ".join(self.names)},
                    fix="take the nodes' positions from these prompts too",
                )
            rows.append([number[name] for name in names])
        return torch.tensor(rows)


def aligned(prompt: PromptPair | AlignedPrompt) -> AlignedPrompt:
    """A pair's clean prompt, with its corrupted one's tokens aligned; an aligned prompt as it is."""
    return prompt if isinstance(prompt, AlignedPrompt) else AlignedPrompt.of_pair(prompt)


def positions_left_to_right(pairs: Sequence[PromptPair]) -> list[str]:
    """All position names, from left to right by mean token index."""
    places: dict[str, list[float]] = {}
    for pair in pairs:
        for name, index in pair.positions.items():
            places.setdefault(name, []).append(index - len(pair.clean_tokens))
    return sorted(places, key=lambda name: (sum(places[name]) / len(places[name]), name))
