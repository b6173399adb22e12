"""What may be meant, but most likely is not: remarks on the prompts of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mechstudy.behaviours.schema import PromptPair
from mechstudy.models.context import ContextLength

_MARK = re.compile(r"<[^<>\s]{1,40}>")
_USUAL = 0.5  # of the answers have as many digits as the longest


class Texts(NamedTuple):
    """The texts of a pair, which are known without a tokenizer."""

    name: str
    clean: str
    answers: tuple[str, ...]


def remarks(texts: Sequence[Texts]) -> Iterator[str]:
    """Answers without their space, numbers without their zeros, and special tokens at the start of some prompts."""
    n = len(texts)
    if joined := [t for t in texts if continues_a_word(t.clean, *t.answers)]:
        first = joined[0]
        yield (
            f"{len(joined)} of {n} answers continue the prompt's last word, as in"
            f" {first.clean.split()[-1] + '|' + first.answers[0]!r} ({first.name}): give them a leading space"
            " unless that is meant"
        )
    digits = {t.name: t.answers[0].strip() for t in texts if re.fullmatch(r"\s*[0-9]+", t.answers[0])}
    lengths = Counter(map(len, digits.values()))
    if lengths and (longest := max(lengths)) > 1 and lengths[longest] >= _USUAL * n and len(digits) == n:
        short = {name: text for name, text in digits.items() if len(text) < longest}
        if short:
            name, text = next(iter(short.items()))
            yield (
                f"{len(short)} of {n} answers have fewer digits than the others, as {text!r} ({name}): a table may"
                f" have made a number of {text.rjust(longest, '0')!r}"
            )
    marks = Counter(match[0] for t in texts if (match := _MARK.match(t.clean)))
    for mark, count in marks.items():
        if count < n:
            yield f"{count} of {n} prompts begin with {mark}, the others do not: positions differ between them"


def too_long(pairs: Iterable[PromptPair], context: ContextLength | None) -> str | None:
    """A remark on prompts beyond the positions that a rotary model was trained on; None where there are none."""
    if context is None:
        return None
    lengths = {pair.id: len(pair.clean_tokens) + max(map(len, pair.all_answer_tokens)) - 1 for pair in pairs}
    over = {name: length for name, length in lengths.items() if length > context.n}
    if not over:
        return None
    name = max(over, key=lambda name: over[name])
    return f"{len(over)} of {len(lengths)} prompts are longer than the model's context: {name} has " + context.exceeded(
        over[name]
    )


def continues_a_word(clean: str, *answers: str) -> bool:
    """Whether an answer continues the prompt's last word, most likely because its leading space was forgotten.

    Only scripts with upper and lower case count, as others do not put spaces between words.
    """

    def is_letter(character: str) -> bool:
        return character.lower() != character.upper()

    return is_letter(clean[-1]) and any(is_letter(answer[0]) for answer in answers)
