"""Checks of users' prompts and corpus rows against the model's positions and BOS token. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mechstudy.behaviours.readers import Broken, Row
from mechstudy.behaviours.row_checks import ANSWERS
from mechstudy.behaviours.special_text import Opening
from mechstudy.behaviours.tokenise import Tokens, Unsuitable, require_positions, texts_of
from mechstudy.behaviours.user import PromptSource, report_of
from mechstudy.core.errors import MechstudyError
from mechstudy.models.context import ContextLength, context_length
from mechstudy.models.tokenizer import bare_tokenizer
from mechstudy.study.study import READING, Study

_PROMPTS = ("clean", "corrupted")


def token_notes(study: Study, config: Mapping[str, Any], folder: Path | None, base: Path) -> Iterator[str]:
    """Sentences on texts beyond the positions that a rotary model was trained on.

    A file is encoded only where it may matter: where a prompt has more bytes than the model has positions (a token has
    at least one), or begins with ``<`` or ``[``, as special tokens do.

    Args:
        config: the model's ``config.json``.
        folder: the model's folder, for its tokenizer; None before it is fetched.
        base: the study file's folder.

    Raises:
        MechstudyError: a text is longer than the learned positions of the model, or a prompt brings a BOS token that
            the tokenizer adds too; ``where`` is the field of the study, or the file and line.
    """
    context = context_length(config)
    if context is not None and study.corpus.context > context.n:
        what = f"rows of {context.exceeded(study.corpus.context)}"
        if context.learned:
            raise MechstudyError(what, where="corpus.context", fix=f"context: {context.n}, or fewer")
        yield f"corpus.context: {what}, and was not trained on more"
    for behaviour in study.behaviours:
        if behaviour.file is not None:
            reading = {name: getattr(behaviour, name) for name in READING}
            yield from _prompt_notes(
                behaviour.name, PromptSource.named(behaviour.file, base, reading), context, folder, study.model.chat
            )


def _prompt_notes(
    name: str, source: PromptSource, context: ContextLength | None, folder: Path | None, chat: bool
) -> Iterator[str]:
    rows = source.read().rows
    suspect = {number: row for number, row in rows.items() if _is_suspect(row, context)}
    bare = bare_tokenizer(folder) if suspect and folder is not None else None
    if bare is None:
        return
    tokens = Tokens(bare.encode)
    opening = Opening(tokens)
    broken: dict[int, Broken] = {}
    long: dict[int, int] = {}
    for number, row in suspect.items():
        # The last token of an answer is predicted, never read.
        length = max(len(tokens(text)) - 1 for text in _longest(row))
        try:
            if not chat:  # the template may write the BOS token, and the bare tokenizer not
                for prompt in _PROMPTS:
                    if prompt in row:
                        opening.check(prompt, row[prompt])
            require_positions(context, length)
        except Unsuitable as error:
            broken[number] = Broken(error.what, error.fix, error.kind)
        if context is not None and length > context.n:
            long[number] = length
    if broken:
        raise report_of(source.path, broken, len(rows))
    if long and context is not None:
        line = max(long, key=lambda line: long[line])
        yield (
            f"{name}: {len(long)} prompts are longer than the model was trained on, as line {line}:"
            f" {context.exceeded(long[line])}"
        )


def _longest(row: Row) -> list[str]:
    prompts = [row[key] for key in _PROMPTS if key in row]
    answers = [text for key in ANSWERS if key in row for text in texts_of(row[key])]
    return [prompt + answer for prompt in prompts for answer in answers]


def _is_suspect(row: Row, context: ContextLength | None) -> bool:
    long = context is not None and any(len(text.encode()) > context.n for text in _longest(row))
    return long or any(row[name].lstrip().startswith(("<", "[")) for name in _PROMPTS if name in row)
