"""Remarks on what is most likely not meant."""

from __future__ import annotations

from mechstudy.behaviours.remarks import Texts, remarks


def texts(*pairs: tuple[str, str]) -> list[Texts]:
    return [
        Texts(f"line-{i}", clean, (answer, "x" if answer.isalpha() else "00"))
        for i, (clean, answer) in enumerate(pairs)
    ]


def test_answers_without_their_space_are_named():
    assert list(remarks(texts(("The cats by the box", "are"), ("The cat by the box", "is")))) == [
        "2 of 2 answers continue the prompt's last word, as in 'box|are' (line-0): give them a leading space unless"
        " that is meant"
    ]


def test_a_number_that_lost_its_zero_is_named():
    years = [("from 1442 to 14", "77"), ("from 1403 to 14", "4"), ("from 1471 to 14", "92")]
    assert list(remarks(texts(*years))) == [
        "1 of 3 answers have fewer digits than the others, as '4' (line-1): a table may have made a number of '04'"
    ]


def test_sums_of_different_lengths_are_no_lost_zeros():
    assert list(remarks(texts(*((f"{i} + {i} =", f" {2 * i}") for i in (1, 2, 3, 9))))) == []


def test_a_special_token_on_some_prompts_only_is_named():
    some = texts(("<|bos|>The cat", " is"), ("The dog", " is"))
    assert list(remarks(some)) == [
        "1 of 2 prompts begin with <|bos|>, the others do not: positions differ between them"
    ]
    assert list(remarks(some[:1])) == []
