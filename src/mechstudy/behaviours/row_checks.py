"""Checks of one row of a prompts file that need no tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from mechstudy.behaviours.formats import format_of, text_of
from mechstudy.behaviours.readers import Broken, Row
from mechstudy.behaviours.schema import SPLITS
from mechstudy.behaviours.tokenise import texts_of
from mechstudy.core.errors import nearest

REQUIRED = ("clean", "corrupted", "answer", "wrong_answer")
OPTIONAL = ("id", "template", "group", "split", "positions", "corrupted_positions")
POSITIONS = ("positions", "corrupted_positions")
ANSWERS = ("answer", "wrong_answer")
KEYS = REQUIRED + OPTIONAL

# What the keys of published files seem to be.
_MEANT = {
    "clean": ("clean_prefix", "clean_prompt", "prompt", "base", "base_prompt", "sentence", "text", "input"),
    "corrupted": ("patch_prefix", "corrupt", "corrupted_prompt", "corrupted_prefix", "counterfactual", "source_prompt"),
    "answer": ("clean_answer", "correct_answer", "right_answer", "correct", "target", "label", "answers", "io"),
    "wrong_answer": ("patch_answer", "corrupted_answer", "incorrect_answer", "incorrect", "wrong", "wrong_answers"),
    "template": ("case", "type", "category", "condition"),
}
_SEEMS = {name: key for key, names in _MEANT.items() for name in names}


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with mechstudy's keys: mapped ones, and those that the file already has under their own names.

    Args:
        columns: key -> column, or a text with columns in braces (``"Q: {question} A:"``).

    Raises:
        Broken: a column that the row lacks, or one that is no text.
    """
    result = {key: row[key] for key in KEYS if key in row and key not in columns}
    for key, column in columns.items():
        if "{" not in column:
            value = _column(row, column)
            several = isinstance(value, list) and key in ANSWERS
            result[key] = value if isinstance(value, dict) or several else text_of(row, column)
        else:
            parts = Formatter().parse(column)
            result[key] = "".join(
                literal + ("" if name is None else (_column(row, name) and "") + text_of(row, name))
                for literal, name, _, _ in parts
            )
    return result


def is_template(text: str) -> bool:
    """Whether a text's braces hold names of columns."""
    try:
        return all(name is None or name for _, name, _, _ in Formatter().parse(text))
    except ValueError:
        return False


def _column(row: Row, name: str) -> Any:
    if name not in row:
        guess = nearest(name, row)
        fix = f"{guess!r}?" if guess else f"this line has {', '.join(row)}"
        raise Broken(f"no value of column {name!r}", fix, "without a value of a column")
    return row[name]


def checked_row(row: Row, required: tuple[str, ...] = REQUIRED) -> Row:
    """The row, after checking its keys and the types of its values.

    Args:
        row: the row, with mechstudy's keys.
        required: keys that it must have.

    Raises:
        Broken: what is wrong with it; all unknown keys at once.
    """
    if unknown := [key for key in row if key not in KEYS]:
        raise Broken(*_unknown(row, unknown), "unknown keys")
    if missing := [key for key in required if key not in row]:
        raise Broken(f"missing {', '.join(missing)}", f"required: {', '.join(required)}", "missing keys")
    for name in POSITIONS:
        if isinstance(row.get(name), str):  # as CSV holds it
            row = row | {name: _parsed(name, row[name])}
    row = row | {key: _answers(key, row[key]) for key in ANSWERS if key in row}
    for key, value in row.items():
        if key not in (*POSITIONS, *ANSWERS):
            check_text(key, value)
    for prompt in ("clean", "corrupted"):
        for answer in ANSWERS:
            if row.get(prompt, "x")[-1] in " \t" and any(text[0] in " \t" for text in texts_of(row.get(answer, "x"))):
                raise Broken(
                    f"{prompt} ends with a space and {answer} begins with one",
                    f"{prompt} without it",
                    "a space before and in the answer",
                )
    check_places(row)
    if shared := [text for text in texts_of(row.get("answer", ())) if text in texts_of(row.get("wrong_answer", ()))]:
        raise Broken(
            f"answers {shared[0]!r} and {shared[0]!r} begin with the same token: they are the same",
            "choose answers with different first tokens",
            "answers begin with the same token",
        )
    if "split" in row and row["split"] not in SPLITS:
        raise Broken(f"unknown split {row['split']!r}", f"one of {', '.join(SPLITS)}, or leave it out", "unknown split")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,79}", row.get("id", "x"), re.ASCII):
        raise Broken(
            f"id {row['id'][:90]!r} cannot name a file",
            "up to 80 of letters, digits and _ . + -, the first a letter or digit",
            "unusable id",
        )
    return row


def check_places(row: Row) -> None:
    """Checks that each position that is a text occurs once in its prompt.

    Raises:
        Broken: one does not.
    """
    for key, which in zip(POSITIONS, ("clean", "corrupted"), strict=True):
        named = row.get(key)
        for name, text in named.items() if isinstance(named, dict) and which in row else ():
            if isinstance(text, str) and text.strip():
                place_of(str(name), text, row[which], which)


def place_of(name: str, text: str, prompt: str, which: str) -> int:
    """Index of the first character of a position's text in its prompt.

    Raises:
        Broken: it is not there, or more than once.
    """
    start = prompt.find(text)
    if start < 0:
        raise Broken(
            f"position {name}: {text!r} is not in the {which} prompt",
            f"copy it from `{which}`, or give an index",
            "a position that is not in the prompt",
        )
    if prompt.find(text, start + 1) >= 0:
        raise Broken(
            f"position {name}: {text!r} is in the {which} prompt more than once",
            "a longer substring that ends at the same word, or a token index",
            "a position that is in the prompt more than once",
        )
    return start


def _answers(name: str, value: object) -> str | list[str]:
    """One answer as a text, several as a list of texts, in which whole numbers become their digits.

    A table holds several as a JSON list.
    """
    if isinstance(value, str) and re.match(r'\[\s*"', value):
        try:
            listed = json.loads(value)
        except ValueError:
            listed = None
        value = listed if isinstance(listed, list) else value
    if not isinstance(value, list):
        check_text(name, value)
        return str(value)
    if not value:
        raise Broken(f"{name} is an empty list", f"{name}: a text, or a list of texts")
    texts = [text_of({name: item}, name) for item in value]
    for text in texts:
        check_text(name, text)
    return texts[0] if len(texts) == 1 else texts


def check_text(name: str, value: object) -> None:
    """Checks that a value is a text that can be written.

    Raises:
        Broken: it is not.
    """
    if not isinstance(value, str) or not value:
        raise Broken(f"{name} is {json.dumps(value, default=str)[:40]}, not a text", f"{name}: a non-empty string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Broken(f"{name} holds half a surrogate pair", "write the character itself") from error


def _parsed(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Broken(f"{name} is {text[:40]!r}, not JSON", f'{name}: {{"name": "substring"}}') from error


def _unknown(row: Row, unknown: list[str]) -> tuple[str, str]:
    """The message and the fix for unknown keys: what they seem to be, and the shape that has them."""
    what = f"unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}"
    meant: dict[str, str] = {}
    for key in unknown:
        seems = _SEEMS.get(key.lower())
        guess = nearest(key, KEYS) if seems is None or seems in row else seems
        if guess is not None and guess not in meant.values():
            meant[key] = guess
    shape = format_of(row)
    if shape is not None:
        return what, f"format: {shape} in the study, or rename: {_arrows(meant)}" if meant else f"format: {shape}"
    if not meant:
        return what, f"keys: {', '.join(KEYS)}; or columns: in the study"
    if len(unknown) == 1:
        return what, f"{meant[unknown[0]]!r}?"
    left = [key for key in unknown if key not in meant]
    return what, f"{_arrows(meant)}{'; leave out ' + ', '.join(left) if left else ''}; or columns: in the study"


def _arrows(meant: Mapping[str, str]) -> str:
    return ", ".join(f"{key} -> {name}" for key, name in meant.items())
