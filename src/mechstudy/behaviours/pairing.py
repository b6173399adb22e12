"""One row of a prompts file as a tokenised prompt pair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mechstudy.behaviours.readers import Broken
from mechstudy.behaviours.row_checks import check_text, place_of
from mechstudy.behaviours.schema import Answers, AnswerSets, PromptPair, aligned
from mechstudy.behaviours.special_text import Opening
from mechstudy.behaviours.splits import group_of
from mechstudy.behaviours.tokenise import (
    PairTokens,
    Tokens,
    Unsuitable,
    pair_tokens,
    require_positions,
    texts_of,
    token_at,
)
from mechstudy.models.context import ContextLength


def tokenised(
    row: Mapping[str, Any],
    default_id: str,
    tokens: Tokens,
    opening: Opening,
    context: ContextLength | None,
    *,
    align: bool,
    answer_sets: AnswerSets | None,
    whole: bool,
) -> PromptPair:
    """The pair of a checked row.

    Args:
        default_id: the pair's id, if the row names none.
        opening: what the encoding puts before every prompt.
        context: the model's positions, if they are known.
        align: whether the two prompts may have different numbers of tokens; they are then aligned by the positions that
            the row names in both, and from their ends.
        answer_sets: how the logits of several answers are combined; None is ``logsumexp``.
        whole: whether all tokens of the answers are compared.

    Raises:
        Broken: it makes no pair with this tokenizer and model.
    """
    clean, corrupted = row["clean"], row.get("corrupted")
    right, wrong = texts_of(row["answer"]), texts_of(row["wrong_answer"])
    several = len(right) + len(wrong) > 2
    if several and whole:
        raise Broken(
            f"{len(right)} right and {len(wrong)} wrong answers with answer_tokens: all",
            "one of each, or answer_tokens: first",
            "several answers of which all tokens count",
        )
    try:
        for name in ("clean", "corrupted"):
            if name in row:
                opening.check(name, row[name])
        ids = pair_tokens(tokens, clean, corrupted, row["answer"], row["wrong_answer"], equal=not align, whole=whole)
        longest = max(len(ids.clean), len(ids.corrupted))
        require_positions(context, longest + max(map(len, ids.answers + ids.wrongs)) - 1)
    except Unsuitable as error:
        raise Broken(error.what, error.fix, error.kind) from error
    positions = _positions(row.get("positions", {}), clean, tokens)
    there = None
    if align and corrupted is not None and (len(ids.clean) != len(ids.corrupted) or "corrupted_positions" in row):
        there = _corrupted_positions(row, ids, positions, tokens)
    elif "corrupted_positions" in row:
        raise Broken(
            "corrupted_positions without align: ends",
            "leave it out, as a position is the same token in both prompts; or align: ends in the study",
        )
    return PromptPair(
        id=row.get("id", default_id),
        template=row.get("template", "user"),
        group=group_of(row),
        clean=clean,
        corrupted=corrupted or "",
        answer=right[0],
        wrong_answer=wrong[0],
        positions=positions,
        clean_tokens=ids.clean,
        corrupted_tokens=ids.corrupted,
        answer_tokens=ids.answer,
        wrong_tokens=ids.wrong,
        corrupted_positions=there,
        answer_sets=Answers(
            combine=answer_sets or "logsumexp",
            right=right,
            wrong=wrong,
            right_tokens=ids.answers,
            wrong_tokens=ids.wrongs,
        )
        if several
        else None,
        whole_answers=whole or None,
    )


def _corrupted_positions(
    row: Mapping[str, Any], ids: PairTokens, positions: Mapping[str, int], tokens: Tokens
) -> dict[str, int]:
    """Where the named positions are in a corrupted prompt of another length: as the row says, else aligned."""
    named = row.get("corrupted_positions", {})
    if isinstance(named, dict) and (other := [name for name in named if name not in positions]):
        raise Broken(f"corrupted_positions names {other[0]!r}, and positions does not", "the same names in both")
    there = {name: aligned(ids.clean, ids.corrupted, index) for name, index in positions.items()}
    found = {name: index for name, index in there.items() if index is not None}
    return found | _positions(named, row["corrupted"], tokens, "corrupted")


def _positions(named: object, clean: str, tokens: Tokens, which: str = "clean") -> dict[str, int]:
    """Token index of each named substring or index of the prompt, plus `last`."""
    if not isinstance(named, dict):
        raise Broken("positions is not an object", 'positions: {"name": "substring" or token index}')
    last = len(tokens(clean)) - 1
    indices: dict[str, int] = {}
    for name, place in named.items():
        check_text("a position's name", name)
        if isinstance(place, int) and not isinstance(place, bool):
            index = place if place >= 0 else last + 1 + place
            if not 0 <= index <= last:
                raise Broken(f"position {name}: no token {place}", f"an index from 0 to {last}, or from the end")
        elif isinstance(place, str) and place.strip():
            index = _find(name, place, clean, tokens, which)
        else:
            raise Broken(
                f"position {name} is {json.dumps(place, default=str)[:40]}",
                f"a substring of the {which} prompt, or a token index",
            )
        indices[name] = index
    if indices.setdefault("last", last) != last:
        raise Broken(
            f"position last is token {indices['last']}, but the prompt ends with token {last}",
            "leave `last` out (it is added to every prompt), or use another name",
        )
    return indices


def _find(name: str, substring: str, clean: str, tokens: Tokens, which: str) -> int:
    start = place_of(name, substring, clean, which)
    return token_at(tokens, clean, start + len(substring.rstrip()))
