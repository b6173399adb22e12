"""Splits of users' prompts: by group, stated or by hash; and the lines that repeat others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mechstudy.behaviours.readers import Broken
from mechstudy.behaviours.schema import SPLITS, PromptPair


def group_of(row: Mapping[str, Any]) -> str:
    """The row's group: the clean prompt, unless it names one."""
    return str(row.get("group", row["clean"]))


def split_of(group: str, stated: Mapping[str, tuple[str, int]]) -> str:
    """The split of a group: the stated one (`stated_splits`), else the one of its hash."""
    return stated[group][0] if group in stated else SPLITS[hashlib.sha256(group.encode()).digest()[0] % 2]


def stated_splits(rows: Mapping[int, Mapping[str, Any]], broken: dict[int, Broken]) -> dict[str, tuple[str, int]]:
    """The split that a group states, and the first line that does; a line that states the other split is broken."""
    stated: dict[str, tuple[str, int]] = {}
    for number, row in rows.items():
        if "split" in row:
            group = group_of(row)
            split, first = stated.setdefault(group, (row["split"], number))
            if split != row["split"]:
                broken.setdefault(
                    number,
                    Broken(
                        f"group {group[:60]!r} is in {row['split']} here and in {split} on line {first}",
                        "one split for all lines of a group, or other groups",
                        "group in both splits",
                    ),
                )
    return stated


def splits_of(
    rows: Mapping[int, Mapping[str, Any]], pairs: Mapping[int, PromptPair], broken: dict[int, Broken]
) -> dict[int, str]:
    """The split of each line. A line whose clean prompt is in the other split is broken."""
    stated = stated_splits({number: rows[number] for number in pairs}, broken)
    splits = {}
    first_lines: dict[str, int] = {}
    for number, pair in pairs.items():
        splits[number] = split_of(pair.group, stated)
        first = first_lines.setdefault(pair.clean, number)
        if splits[first] != splits[number]:
            broken.setdefault(
                number,
                Broken(
                    f"the clean prompt of line {first}, in the other split",
                    "give both lines one group, or leave one out: a test prompt must not be trained on",
                    "clean prompt in both splits",
                ),
            )
    return splits


def mark_repeats(pairs: Mapping[int, PromptPair], broken: dict[int, Broken]) -> None:
    """Marks lines whose id or whole pair another line has."""
    ids: dict[str, int] = {}
    contents: dict[tuple[object, ...], int] = {}
    for number, pair in pairs.items():
        if (first := ids.setdefault(pair.id, number)) != number:
            broken.setdefault(number, Broken(f"id {pair.id!r} is line {first}'s", "another id, or none", "repeated id"))
        content = (pair.clean, pair.corrupted, pair.all_answers, pair.all_wrong_answers)
        if (first := contents.setdefault(content, number)) != number:
            broken.setdefault(number, Broken(f"the same pair as line {first}", "leave one out", "repeated pair"))
