"""Prompt pairs, built in or from a file, and how the model does on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, overload

import polars as pl

from mechstudy.behaviours.readers import ENDINGS
from mechstudy.behaviours.registry import BEHAVIOURS, behaviour
from mechstudy.behaviours.sampling import sample
from mechstudy.behaviours.schema import AnswerSets, PromptPair
from mechstudy.behaviours.scoring import score_pairs
from mechstudy.behaviours.user import PromptSource, read_prompts
from mechstudy.core.errors import MechstudyError
from mechstudy.models.language_model import LanguageModel


class Prompts(Sequence[PromptPair]):
    """Prompt pairs in order; ``frame`` shows them as a table."""

    def __init__(self, pairs: Iterable[PromptPair], name: str = "prompts") -> None:
        self._pairs = tuple(pairs)
        self.name = name

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> PromptPair | Prompts:
        if isinstance(index, slice):
            return Prompts(self._pairs[index], self.name)
        return self._pairs[index]

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self._pairs)

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each pair: id, clean, corrupted, answer, wrong_answer, group, template, tokens."""
        columns = ("id", "clean", "corrupted", "answer", "wrong_answer", "group", "template")
        rows = [[*(getattr(pair, name) for name in columns), len(pair.clean_tokens)] for pair in self._pairs]
        return pl.DataFrame(rows, schema=[*columns, "tokens"], orient="row")

    def __repr__(self) -> str:
        return f"{len(self)} prompt pairs of {self.name}\n{self.frame}"

    def _repr_html_(self) -> str:
        return self.frame._repr_html_()


def load_prompts(
    source: str | Path,
    model: LanguageModel,
    n: int | None = None,
    *,
    split: str | None = None,
    seed: int = 0,
    instruction: str | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    counterfactual: str | None = None,
    align: Literal["ends"] | None = None,
    corrupted: Literal["other-line"] | None = None,
    answer_sets: AnswerSets | None = None,
    answer_tokens: Literal["first", "all"] | None = None,
    strict: bool = True,
) -> Prompts:
    """Prompt pairs of a built-in behaviour, or of a file, tokenised for the model.

        pairs = ms.load_prompts("subject_verb_agreement", model, n=50)
        pairs = ms.load_prompts("prompts.jsonl", model)
        pairs = ms.load_prompts("simple_train.json", model, format="feature-circuits", strict=False)

    Args:
        source: a behaviour's name, or a file (JSON Lines, JSON, CSV, TSV, Parquet) of rows with ``clean``,
            ``corrupted``, ``answer`` and ``wrong_answer`` (docs/reference/behaviours.md).
        model: whose tokenizer decides which words make a pair.
        n: how many; by default 100 of a built-in behaviour, or all of a file.
        split: ``train`` or ``test``; by default ``train`` of a built-in behaviour, or both of a file.
        seed: chooses the pairs of a built-in behaviour, and ``n`` of a file's pairs: templates and groups keep their
            shares.
        instruction: the user's turn of the model's chat template, which the prompts then begin to answer.
        format: the published shape of the file.
        columns: key -> column of the file, or a text with columns in braces.
        counterfactual: which of the counterfactuals of that shape is the corrupted prompt.
        align: ``ends`` accepts clean and corrupted prompts of different numbers of tokens.
        corrupted: ``other-line`` takes each line's corrupted prompt from another line, chosen by ``seed``.
        answer_sets: how the logits of several right or wrong answers are combined: ``logsumexp`` (the default) or
            ``mean``.
        answer_tokens: ``all`` compares all tokens of the answers; by default their ``first`` ones.
        strict: whether a line that cannot be used is an error; otherwise it is left out.

    Raises:
        MechstudyError: no such behaviour, fewer pairs than ``n``, or broken lines in the file.
    """
    encode = partial(model.encode, instruction=instruction)
    if str(source) in BEHAVIOURS or not _is_file(source):
        pairs = behaviour(str(source)).generate(
            encode, 100 if n is None else n, split or "train", seed, model.unknown_token
        )
        return Prompts(pairs, str(source))
    reading = {
        "format": format,
        "columns": columns,
        "counterfactual": counterfactual,
        "align": align,
        "corrupted": corrupted,
        "answer_sets": answer_sets,
        "answer_tokens": answer_tokens,
        "strict": strict,
    }
    path = Path(source).expanduser()
    by_split = read_prompts(PromptSource.of(path, reading, seed), encode, unknown=model.unknown_token).pairs
    if split is not None and split not in by_split:
        raise MechstudyError(f"unknown split {split!r}", facts={"splits": ", ".join(by_split)})
    pairs = [pair for name in by_split if split in (None, name) for pair in by_split[name]]
    if n is not None and n > len(pairs):
        raise MechstudyError(
            f"{n} prompts asked for, but there are {len(pairs)}",
            where=str(source),
            fix=f"n={len(pairs)}, or more lines",
        )
    return Prompts(pairs if n is None or n == len(pairs) else sample(pairs, n, seed), Path(source).stem)


def score(model: LanguageModel, pairs: Iterable[PromptPair], *, batch_tokens: int = 4096) -> pl.DataFrame:
    """Score the model on the clean prompts, a row each.

    Columns: id, template, group, logprob_answer, logprob_wrong (natural logarithms, of the whole answers),
    logit_difference (of the answers' first tokens), rank_answer (from 1), correct (0 or 1), top_token, prob_answer.

    Raises:
        MechstudyError: no prompts.
    """
    return pl.DataFrame(
        [scored.row() for scored in score_pairs(model, checked_pairs(pairs), batch_tokens=batch_tokens)]
    )


def checked_pairs(pairs: Iterable[PromptPair]) -> list[PromptPair]:
    """The pairs as a list.

    Raises:
        MechstudyError: there are none, or an item is not a prompt pair.
    """
    listed = list(pairs)
    for pair in listed:
        if not isinstance(pair, PromptPair):
            raise MechstudyError(
                f"a {type(pair).__name__} is not a prompt pair",
                fix='ms.load_prompts("subject_verb_agreement", model, n=50), or ms.load_prompts(file, model)',
            )
    if not listed:
        raise MechstudyError("there are no prompts", fix="pass at least one prompt pair, from ms.load_prompts")
    return listed


def _is_file(source: str | Path) -> bool:
    text = str(source)
    return isinstance(source, Path) or Path(text).expanduser().is_file() or "/" in text or Path(text).suffix in ENDINGS
