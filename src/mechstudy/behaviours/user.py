"""Users' own prompts: a JSON Lines file, one contrastive pair per line (see docs/reference/behaviours.md)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechstudy.behaviours.schema import SPLITS, Encode, PromptPair
from mechstudy.behaviours.tokenise import Tokens, Unsuitable, pair_tokens, require_open_end, token_at
from mechstudy.core.errors import MechstudyError, nearest

REQUIRED = ("clean", "corrupted", "answer", "wrong_answer")
OPTIONAL = ("id", "template", "group", "split", "positions")
MAX_LISTED = 10


class _Broken(ValueError):
    """A line of the file that cannot be used, with its fix."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


def load_jsonl(path: Path, encode: Encode) -> dict[str, list[PromptPair]]:
    """Reads a user's prompts, tokenises and validates every line, and splits them.

    A line without ``split`` is put into a split by the hash of its group: no group is in both splits, and adding lines
    does not move earlier ones.

    Args:
        path: the file.
        encode: text to token ids (`LanguageModel.encode`).

    Returns:
        {"train": [...], "test": [...]}, both non-empty, in the file's order.

    Raises:
        MechstudyError: the file is missing or empty, or lines are broken; the first ten are listed as ``file:line``.
    """
    path = Path(path)
    tokens = Tokens(encode)
    require_open_end(tokens)
    broken: dict[int, _Broken] = {}
    rows = _parsed(path, broken)
    pairs: dict[int, PromptPair] = {}
    for number, row in rows.items():
        try:
            pairs[number] = _pair(row, f"line-{number:04d}", tokens)
        except _Broken as error:
            broken[number] = error
    split_of = _splits(rows, pairs, broken)
    _no_repeats(pairs, broken)
    if broken:
        raise _report(path, broken, len(rows.keys() | broken.keys()))
    result: dict[str, list[PromptPair]] = {
        split: [pairs[number] for number in pairs if split_of[number] == split] for split in SPLITS
    }
    for split in SPLITS:
        if not result[split]:
            raise MechstudyError(
                f"no {split} prompts: all {len(pairs)} are in the other split",
                where=str(path),
                fix=f'write "split": "{split}" on some lines, or add lines of other groups',
            )
    return result


@dataclass(frozen=True)
class Outline:
    """Contents of a file that are known without a tokenizer.

    Attributes:
        n: prompts per split.
        positions: names of the positions that all prompts have.
        n_groups: distinct groups per split.
    """

    n: Mapping[str, int]
    positions: tuple[str, ...]
    n_groups: Mapping[str, int]


def outline_jsonl(path: Path) -> Outline:
    """Checks every line as far as possible without a tokenizer, and counts prompts.

    Raises:
        MechstudyError: as `load_jsonl`, for errors that do not depend on tokens.
    """
    broken: dict[int, _Broken] = {}
    rows = _parsed(path, broken)
    stated = _stated(rows, broken)
    if broken:
        raise _report(path, broken, len(rows.keys() | broken.keys()))
    groups = [_group(row) for row in rows.values()]
    splits = [stated[group][0] if group in stated else _hashed(group) for group in groups]
    named = [row["positions"] if isinstance(row.get("positions"), dict) else {} for row in rows.values()]
    common = [name for name in named[0] if all(name in others for others in named)]
    split_of = dict(zip(groups, splits, strict=True))
    return Outline(
        n={split: splits.count(split) for split in SPLITS},
        positions=(*common, "last"),
        n_groups={split: list(split_of.values()).count(split) for split in SPLITS},
    )


def joined_words(pairs: Iterable[PromptPair]) -> list[PromptPair]:
    """Pairs whose answer continues the prompt's last word, most likely because its leading space was forgotten.

    Only scripts with upper and lower case count, as others do not put spaces between words.
    """

    def is_letter(character: str) -> bool:
        return character.lower() != character.upper()

    return [p for p in pairs if is_letter(p.clean[-1]) and (is_letter(p.answer[0]) or is_letter(p.wrong_answer[0]))]


def _parsed(path: Path, broken: dict[int, _Broken]) -> dict[int, dict[str, Any]]:
    """The object of each line that can be read, by line number; the others are added to ``broken``."""
    rows: dict[int, dict[str, Any]] = {}
    for number, raw in _lines(path):
        try:
            rows[number] = _parse(raw)
        except _Broken as error:
            broken[number] = error
    if not rows and not broken:
        raise MechstudyError("no prompts in the file", where=str(path), fix="one JSON object a line")
    return rows


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """Number and bytes of the lines that are not blank."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MechstudyError(
            f"cannot read the prompts: {error.strerror}", where=str(path), fix="the path of a .jsonl file"
        ) from error
    data = data.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that Windows editors write
    return [(number, raw) for number, raw in enumerate(data.split(b"\n"), start=1) if raw.strip()]


def _parse(raw: bytes) -> dict[str, Any]:
    """A line's object, after checking its keys and the types of its values."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        for key in keys:
            if keys.count(key) > 1:
                raise _Broken(f"key {key!r} occurs twice", "keep one")
        return dict(items)

    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise _Broken(f"not UTF-8 at byte {error.start + 1} of the line", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise _Broken(f"not JSON: {error.msg} at column {error.colno}", "one JSON object a line") from error
    except _Broken:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise _Broken(f"not readable: {error}", "plain texts and token indices") from error
    except RecursionError as error:
        raise _Broken("not a prompt: nested too deeply", "one flat JSON object a line") from error
    if not isinstance(row, dict):
        raise _Broken(f"a JSON {type(row).__name__}, not an object", 'a line is {"clean": ..., ...}')
    for key in row:
        if key not in REQUIRED + OPTIONAL:
            meant = nearest(key, REQUIRED + OPTIONAL)
            raise _Broken(f"unknown key {key!r}", f"{meant!r}?" if meant else f"keys: {', '.join(REQUIRED + OPTIONAL)}")
    if missing := [key for key in REQUIRED if key not in row]:
        raise _Broken(f"missing {', '.join(missing)}", f"required: {', '.join(REQUIRED)}")
    for key, value in row.items():
        if key != "positions":
            _check_text(key, value)
    for prompt in ("clean", "corrupted"):
        for answer in ("answer", "wrong_answer"):
            if row[prompt][-1] in " \t" and row[answer][0] in " \t":
                raise _Broken(f"{prompt} ends with a space and {answer} begins with one", f"{prompt} without it")
    if "split" in row and row["split"] not in SPLITS:
        raise _Broken(f"unknown split {row['split']!r}", f"one of {', '.join(SPLITS)}, or leave it out")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,79}", row.get("id", "x"), re.ASCII):
        raise _Broken(
            f"id {row['id'][:90]!r} cannot name a file",
            "up to 80 of letters, digits and _ . + -, the first a letter or digit",
        )
    return row


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise _Broken(f"{name} is {json.dumps(value)[:40]}, not a text", f"{name}: a non-empty string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Broken(f"{name} holds half a surrogate pair", "write the character itself") from error


def _pair(row: Mapping[str, Any], default_id: str, tokens: Tokens) -> PromptPair:
    clean, corrupted = row["clean"], row["corrupted"]
    try:
        ids = pair_tokens(tokens, clean, corrupted, row["answer"], row["wrong_answer"])
    except Unsuitable as error:
        raise _Broken(error.what, error.fix) from error
    return PromptPair(
        id=row.get("id", default_id),
        template=row.get("template", "user"),
        group=_group(row),
        clean=clean,
        corrupted=corrupted,
        answer=row["answer"],
        wrong_answer=row["wrong_answer"],
        positions=_positions(row.get("positions", {}), clean, tokens),
        clean_tokens=ids.clean,
        corrupted_tokens=ids.corrupted,
        answer_tokens=ids.answer,
        wrong_tokens=ids.wrong,
    )


def _positions(named: object, clean: str, tokens: Tokens) -> dict[str, int]:
    """Token index of each named substring or index of the clean prompt, plus `last`."""
    if not isinstance(named, dict):
        raise _Broken("positions is not an object", 'positions: {"name": "substring" or token index}')
    last = len(tokens(clean)) - 1
    indices: dict[str, int] = {}
    for name, place in named.items():
        _check_text("a position's name", name)
        if isinstance(place, int) and not isinstance(place, bool):
            index = place if place >= 0 else last + 1 + place
            if not 0 <= index <= last:
                raise _Broken(f"position {name}: no token {place}", f"an index from 0 to {last}, or from the end")
        elif isinstance(place, str) and place.strip():
            index = _find(name, place, clean, tokens)
        else:
            raise _Broken(
                f"position {name} is {json.dumps(place)[:40]}", "a substring of the clean prompt, or a token index"
            )
        indices[name] = index
    if indices.setdefault("last", last) != last:
        raise _Broken(
            f"position last is token {indices['last']}, but the prompt ends with token {last}",
            "leave `last` out (it is added to every prompt), or use another name",
        )
    return indices


def _find(name: str, substring: str, clean: str, tokens: Tokens) -> int:
    start = clean.find(substring)
    if start < 0:
        raise _Broken(
            f"position {name}: {substring!r} is not in the clean prompt", "copy it from `clean`, or give an index"
        )
    if clean.find(substring, start + 1) >= 0:
        raise _Broken(
            f"position {name}: {substring!r} is in the clean prompt more than once",
            "a longer substring that ends at the same word, or a token index",
        )
    return token_at(tokens, clean, start + len(substring.rstrip()))


def _splits(
    rows: Mapping[int, Mapping[str, Any]], pairs: Mapping[int, PromptPair], broken: dict[int, _Broken]
) -> dict[int, str]:
    """The split of each line: the one its group states, else the one of the group's hash."""
    stated = _stated(rows, broken)
    split_of = {}
    first_lines: dict[str, int] = {}
    for number, pair in pairs.items():
        split_of[number] = stated[pair.group][0] if pair.group in stated else _hashed(pair.group)
        first = first_lines.setdefault(pair.clean, number)
        if split_of[first] != split_of[number]:
            broken.setdefault(
                number,
                _Broken(
                    f"the clean prompt of line {first}, in the other split",
                    "give both lines one group, or leave one out: a test prompt must not be trained on",
                ),
            )
    return split_of


def _stated(rows: Mapping[int, Mapping[str, Any]], broken: dict[int, _Broken]) -> dict[str, tuple[str, int]]:
    """The split that a group states, and the first line that does; a line that states the other split is broken."""
    stated: dict[str, tuple[str, int]] = {}
    for number, row in rows.items():
        if "split" in row:
            group = _group(row)
            split, first = stated.setdefault(group, (row["split"], number))
            if split != row["split"]:
                broken.setdefault(
                    number,
                    _Broken(
                        f"group {group[:60]!r} is in {row['split']} here and in {split} on line {first}",
                        "one split for all lines of a group, or other groups",
                    ),
                )
    return stated


def _group(row: Mapping[str, Any]) -> str:
    return str(row.get("group", row["clean"]))


def _hashed(group: str) -> str:
    return SPLITS[hashlib.sha256(group.encode()).digest()[0] % 2]


def _no_repeats(pairs: Mapping[int, PromptPair], broken: dict[int, _Broken]) -> None:
    """Checks that ids and whole pairs occur once."""
    ids: dict[str, int] = {}
    contents: dict[tuple[str, ...], int] = {}
    for number, pair in pairs.items():
        if (first := ids.setdefault(pair.id, number)) != number:
            broken.setdefault(number, _Broken(f"id {pair.id!r} is line {first}'s", "another id, or none"))
        content = (pair.clean, pair.corrupted, pair.answer, pair.wrong_answer)
        if (first := contents.setdefault(content, number)) != number:
            broken.setdefault(number, _Broken(f"the same pair as line {first}", "leave one out"))


def _report(path: Path, broken: Mapping[int, _Broken], n_lines: int) -> MechstudyError:
    """One error for all broken lines; a single one is reported like any other error."""
    if len(broken) == 1:
        ((number, only),) = broken.items()
        return MechstudyError(only.what, where=f"{path}:{number}", fix=only.fix)
    listed = sorted(broken)[:MAX_LISTED]
    more = f"; the first {MAX_LISTED} are" if len(broken) > MAX_LISTED else ""
    return MechstudyError(
        f"{len(broken)} of {n_lines} lines are broken{more}",
        where=str(path),
        facts={f"{path.name}:{number}": f"{broken[number].what}\nfix: {broken[number].fix}" for number in listed},
    )
