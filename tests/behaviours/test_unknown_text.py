"""Prompts of words that the tokenizer does not know: mostly unknown ones are refused, a few are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechstudy.behaviours.generator import Behaviour
from mechstudy.behaviours.registry import BEHAVIOURS
from mechstudy.behaviours.tokenise import UNKNOWN, Tokens, Unsuitable, pair_tokens
from mechstudy.behaviours.user import PromptSource, UserPrompts, read_prompts
from mechstudy.core.errors import MechstudyError
from mechstudy.models.unknown_token import unknown_token
from tests.support.word_tokenizer import word_tokenizer


def tokens(*words: str, bos: bool = False) -> Tokens:
    tokenizer = word_tokenizer(*words, bos=bos)
    return Tokens(lambda text: tokenizer(text).input_ids, unknown_token(tokenizer, "acme/tiny"))


def read(folder: Path, rows: list[dict[str, Any]], *words: str, strict: bool = False) -> UserPrompts:
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encode = tokens(*words, bos=True)
    return read_prompts(PromptSource(folder / "own.jsonl", strict=strict), encode, None, encode.unknown)


def row(clean: str, corrupted: str, number: int, answer: str = " a", wrong: str = " b") -> dict[str, Any]:
    split = ("train", "test")[number % 2]
    texts = {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong_answer": wrong}
    return texts | {"split": split, "group": str(number)}


UNKNOWN_ROWS = [row(f"The keys of cabinet {i}", f"The key of cabinet {i}", i) for i in range(6)]


@pytest.mark.parametrize("strict", [False, True])
def test_a_file_of_unknown_words_is_refused_with_its_share_and_an_example(tmp_path, strict):
    with pytest.raises(MechstudyError, match="knows few of the words: 100% of the tokens") as error:
        read(tmp_path, UNKNOWN_ROWS, strict=strict)
    said = str(error.value)
    assert "the tokenizer of acme/tiny" in said and "own.jsonl" in said and "'<unk>'" in said
    assert "6 of 6" in said and "line 1" in said and "The keys of cabinet" in said
    assert "the tokenizer that these weights were trained with" in said


def test_lines_that_are_mostly_unknown_are_left_out_and_counted(tmp_path):
    known = [row(f"c {letter}", f"d {letter}", number) for number, letter in enumerate("efghijkl")]
    found = read(tmp_path, [*known, row("c the keys", "d the keys", 8)])
    assert {number: error.kind for number, error in found.left_out.items()} == {9: UNKNOWN}
    assert "2 of 3 tokens are '<unk>'" in found.left_out[9].what and "'c the keys'" in found.left_out[9].what


def test_half_of_a_prompts_tokens_may_be_unknown_and_no_more():
    encode = tokens(bos=True)
    assert pair_tokens(encode, "c keys", "d keys", " a", " b").clean == (0, 4, 1)
    with pytest.raises(Unsuitable, match="clean: 2 of 3 tokens") as error:
        pair_tokens(encode, "c the keys", "d the keys", " a", " b")
    assert error.value.kind == UNKNOWN
    with pytest.raises(Unsuitable, match="corrupted: 3 of 3"):
        pair_tokens(encode, "c d e", "such keys open", " a", " b")


@pytest.mark.parametrize("answers", [(" are", " b"), (" a", " is"), ([" a", " are"], " b")])
def test_an_answer_that_the_tokenizer_does_not_know_is_no_answer(answers):
    with pytest.raises(Unsuitable, match="holds '<unk>', the token of all texts") as error:
        pair_tokens(tokens(), "c", "d", *answers)
    assert error.value.kind == UNKNOWN


def test_the_unknown_token_itself_may_be_asked_for():
    assert pair_tokens(tokens(), "c", "d", " <unk>", " b").answer == (1,)


def test_a_built_in_behaviour_of_unknown_words_says_so():
    family: Behaviour = BEHAVIOURS["country_capital"]
    encode = tokens()
    with pytest.raises(MechstudyError, match="this tokenizer allows 0 at most") as error:
        family.generate(encode, 4, "train", 0, encode.unknown)
    assert UNKNOWN in error.value.facts["skipped"] and "trained with" in str(error.value.fix)
