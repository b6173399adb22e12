"""The token that stands for every text which a tokenizer has no token for. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.models import Unigram

MOST = 0.5
"""The share of unknown tokens above which a text is refused: more of it is unknown than known."""


@dataclass(frozen=True)
class UnknownToken:
    """The unknown token of a tokenizer.

    Attributes:
        id: its id.
        text: as the vocabulary has it, such as ``<unk>``.
        tokenizer: how messages name the tokenizer.
    """

    id: int
    text: str
    tokenizer: str

    def among(self, ids: Sequence[int]) -> int:
        """How many of some tokens it is."""
        return sum(token == self.id for token in ids)

    @property
    def fix(self) -> str:
        """What to do about text that is mostly unknown."""
        return "the tokenizer that these weights were trained with, or text of words that it knows"


def unknown_token(tokenizer: Any, name: str) -> UnknownToken | None:
    """A tokenizer's unknown token; None where it has none, as those of bytes.

    Args:
        tokenizer: of transformers, or a bare one of tokenizers.
        name: the model's.
    """
    bare = getattr(tokenizer, "backend_tokenizer", tokenizer)
    model = getattr(bare, "model", None)
    text = getattr(model, "unk_token", None) or _of_unigram(model) or getattr(tokenizer, "unk_token", None)
    if not isinstance(text, str):
        return None
    to_id = getattr(bare, "token_to_id", None) or tokenizer.convert_tokens_to_ids
    token = to_id(text)
    return None if token is None else UnknownToken(int(token), text, f"the tokenizer of {name}")


def _of_unigram(model: Any) -> str | None:
    """The unknown token of a Unigram model, which says it in its state alone."""
    if not isinstance(model, Unigram):
        return None
    found = re.search(rb'"unk_id":(\d+)', model.__getstate__()[:200])
    return None if found is None else model.id_to_token(int(found[1]))
