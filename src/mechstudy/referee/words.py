"""Vocabularies of whole words, and prompt pairs of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from mechstudy.behaviours.schema import PromptPair

BOS = "<s>"  # the first word of every vocabulary, and of every prompt


def numbered_words(n: int) -> tuple[str, ...]:
    """A vocabulary of ``n`` words without a meaning, `BOS` the first."""
    return (BOS, *(f"w{i}" for i in range(1, n)))


def word_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer whose tokens are these words, in order; unknown words become the first."""
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, bos_token=words[0], unk_token=words[0])


def pair_of(
    name: str,
    number: int,
    text: Sequence[str],
    clean: Sequence[int],
    corrupted: Sequence[int],
    answers: tuple[int, int],
    positions: Mapping[str, int],
) -> PromptPair:
    """A pair of token ids as a `PromptPair`.

    Args:
        name: of the behaviour and split, the beginning of the pair's id.
        number: of the pair.
        text: each token as text.
        clean, corrupted: the prompts, of one length.
        answers: the right and the wrong token.
        positions: tokens by name.
    """
    right, wrong = answers
    return PromptPair(
        id=f"{name}-{number}",
        template=name,
        group=f"{name}-{number}",
        clean=" ".join(text[t].strip() for t in clean),
        corrupted=" ".join(text[t].strip() for t in corrupted),
        answer=f" {text[right].strip()}",
        wrong_answer=f" {text[wrong].strip()}",
        positions=dict(positions),
        clean_tokens=tuple(clean),
        corrupted_tokens=tuple(corrupted),
        answer_tokens=(right,),
        wrong_tokens=(wrong,),
    )
