"""Pairs whose prompts differ in length, or that have no corrupted prompt, or one from another line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechstudy.behaviours.schema import PromptPair, aligned, from_jsonl, to_jsonl
from mechstudy.behaviours.user import PromptSource, UserPrompts, outline, read_prompts
from mechstudy.core.errors import MechstudyError
from tests.support.fake_tokenizer import FakeTokenizer

ANSWERS = {"answer": " is", "wrong_answer": " are"}


def read(folder: Path, rows: list[dict[str, Any]], **how: Any) -> UserPrompts:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_prompts(PromptSource(path, **({"strict": False} | how)), FakeTokenizer(bos=False))


def pairs(read_in: UserPrompts) -> list[PromptPair]:
    every = [pair for split in read_in.pairs.values() for pair in split]
    return sorted(every, key=lambda pair: pair.id)


def rows(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"clean": f"The cat {i} sat here", "split": ("train", "test")[i % 2], **ANSWERS, **more} for i in range(n)]


def test_tokens_are_aligned_at_the_common_beginning_and_from_the_end():
    clean, corrupted = [1, 2, 3, 8, 9], [1, 2, 4, 5, 6, 8, 9]
    assert [aligned(clean, corrupted, i) for i in range(5)] == [0, 1, 4, 5, 6]
    assert [aligned(corrupted, clean, i) for i in range(7)] == [0, 1, None, None, 2, 3, 4]


def test_prompts_of_unequal_length_are_left_out_unless_they_are_aligned(tmp_path):
    lines = [
        row | {"corrupted": row["clean"].replace("cat", "small cats")} for row in rows(4, positions={"cat": "cat"})
    ]
    with pytest.raises(MechstudyError, match="clean has 5 tokens, corrupted 6"):
        read(tmp_path, lines)
    read_in = read(tmp_path, lines, align="ends")
    assert not read_in.left_out
    pair = pairs(read_in)[0]
    assert pair.positions == {"cat": 1, "last": 4} and pair.corrupted_positions == {"cat": 2, "last": 5}
    assert [pair.corrupted_at(i) for i in range(5)] == [0, 2, 3, 4, 5]


def test_positions_of_the_corrupted_prompt_may_be_named(tmp_path):
    lines = [
        row | {"corrupted": row["clean"].replace("The cat", "Two old cats"), "corrupted_positions": {"cat": "Two"}}
        for row in rows(4, positions={"cat": "cat"})
    ]
    pair = pairs(read(tmp_path, lines, align="ends"))[0]
    assert pair.corrupted_positions == {"cat": 0, "last": 5} and pair.corrupted_at(1) == 0
    with pytest.raises(MechstudyError, match="clean has 5 tokens, corrupted 6"):
        read(tmp_path, lines)
    lines[0]["corrupted_positions"] = {"dog": 0}
    assert "names 'dog', and positions does not" in read(tmp_path, lines, align="ends").left_out[1].what


def test_pairs_of_equal_length_are_the_same_with_and_without_alignment(tmp_path):
    lines = [row | {"corrupted": row["clean"].replace("cat", "cats")} for row in rows(4, positions={"cat": "cat"})]
    plain, with_ends = (pairs(read(tmp_path, lines, **how)) for how in ({}, {"align": "ends"}))
    assert plain == with_ends and "corrupted_positions" not in plain[0].canonical()
    assert [plain[0].corrupted_at(i) for i in range(5)] == [0, 1, 2, 3, 4]


def test_a_file_without_corrupted_prompts_is_read(tmp_path):
    read_in = read(tmp_path, rows(4))
    assert not read_in.left_out
    pair = pairs(read_in)[0]
    assert (pair.corrupted, pair.corrupted_tokens, pair.has_corrupted, pair.corrupted_at(0)) == ("", (), False, None)
    (tmp_path / "train.jsonl").write_text(to_jsonl([pair]))
    assert from_jsonl(tmp_path / "train.jsonl") == [pair]
    assert not outline(PromptSource(tmp_path / "mine.jsonl")).has_corrupted


def test_a_corrupted_prompt_is_required_of_every_line_if_any_has_one(tmp_path):
    lines = [row | {"corrupted": row["clean"].replace("cat", "cats")} for row in rows(4)]
    del lines[0]["corrupted"]
    assert read(tmp_path, [*lines, *rows(6)[4:]]).left_out[1].what == "missing corrupted"


def test_a_corrupted_prompt_is_taken_from_another_line_of_its_kind(tmp_path):
    lines = [
        {"clean": f"{name} lives in", "answer": f" {place}", "template": template, "split": split}
        for split in ("train", "test")
        for template in ("a", "b")
        for name, place in ((f"{split}{template}{i}", f"P{i}") for i in range(4))
    ]
    read_in = read(tmp_path, lines, corrupted="other-line")
    assert not read_in.left_out and len(pairs(read_in)) == 16
    by_clean = {pair.clean: pair for pair in pairs(read_in)}
    for split, made in read_in.pairs.items():
        for pair in made:
            donor = by_clean[pair.corrupted]
            assert donor in read_in.pairs[split] and donor.template == pair.template
            assert donor.answer == pair.wrong_answer != pair.answer
    assert pairs(read(tmp_path, lines, corrupted="other-line")) == pairs(read_in)
    assert pairs(read(tmp_path, lines, corrupted="other-line", seed=1)) != pairs(read_in)


def test_a_line_without_a_donor_is_left_out(tmp_path):
    lines = [{"clean": f"N{i} lives in", "answer": f" P{i}", "split": ("train", "test")[i % 2]} for i in range(4)]
    lines.append({"clean": "N9 has for long lived in", "answer": " P9", "split": "train"})
    left_out = read(tmp_path, lines, corrupted="other-line").left_out
    assert {n: error.kind for n, error in left_out.items()} == {5: "no other line for the corrupted prompt"}
    assert len(pairs(read(tmp_path, lines, corrupted="other-line", align="ends"))) == 5
