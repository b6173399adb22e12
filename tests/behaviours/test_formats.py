"""Published shapes, by self-written rows with their keys."""

from __future__ import annotations

from typing import Any

import pytest

from mechstudy.behaviours.formats import FORMATS, converted, format_of
from mechstudy.behaviours.readers import Broken
from mechstudy.behaviours.row_checks import checked_row, renamed

NAMES = {"indirect_object": "Ann", "subject": "Bob", "object": "pen", "place": "park"}
COLOURS = {"label": ["A", "B"], "text": ["red", "blue"]}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "feature-circuits": (
        {
            "clean_prefix": "The cats near the box",
            "patch_prefix": "The cat near the box",
            "clean_answer": "are",
            "patch_answer": "is",
            "case": "plural_singular",
        },
        {
            "clean": "The cats near the box",
            "corrupted": "The cat near the box",
            "answer": " are",
            "wrong_answer": " is",
            "template": "plural_singular",
        },
    ),
    "ioi": (
        {
            "prompt": "Ann and Bob went to the park. Bob gave a pen to",
            "template": "t1",
            "metadata": NAMES,
            "choices": ["Ann", "Bob"],
            "answerKey": 0,
            "abc_counterfactual": {
                "prompt": "Cy and Di went. Ed gave a pen to",
                "choices": ["Cy", "Di"],
                "answerKey": 0,
            },
            "s2_io_flip_counterfactual": {
                "prompt": "Ann and Bob went to the park. Ann gave a pen to",
                "choices": ["Ann", "Bob"],
                "answerKey": 1,
            },
        },
        {
            "clean": "Ann and Bob went to the park. Bob gave a pen to",
            "corrupted": "Ann and Bob went to the park. Ann gave a pen to",
            "answer": " Ann",
            "wrong_answer": " Bob",
            "template": "t1",
            "group": "Ann Bob",
            "positions": {"io": "Ann"},
        },
    ),
    "greater-than": (
        {
            "clean": "The war lasted from the year 1704 to the year 17",
            "corrupted": "... 1701 to the year 17",
            "label": "4",
        },
        {
            "clean": "The war lasted from the year 1704 to the year 17",
            "corrupted": "... 1701 to the year 17",
            "answer": "52",
            "wrong_answer": "02",
            "group": "1704",
        },
    ),
    "gendered-pronouns": (
        {"clean": "So Ann is kind, isn't", "corrupted": "So Bob is kind, isn't", "pronoun": " she"},
        {
            "clean": "So Ann is kind, isn't",
            "corrupted": "So Bob is kind, isn't",
            "answer": " she",
            "wrong_answer": " he",
        },
    ),
    "docstring": (
        {
            "clean": "def f(a, b):\n  :param",
            "corrupt": "def f(c, d):\n  :param",
            "answers": [" b"],
            "wrong_answers": [" d", " e"],
        },
        {
            "clean": "def f(a, b):\n  :param",
            "corrupted": "def f(c, d):\n  :param",
            "answer": " b",
            "wrong_answer": [" d", " e"],
        },
    ),
    "mib-arithmetic": (
        {
            "prompt": "The sum of 13 and 25 is ",
            "template": "sum",
            "label": "38",
            "operator": "+",
            "operand1": 13,
            "operand2": 25,
            "random_counterfactual": {"prompt": "The sum of 41 and 17 is ", "label": 58},
        },
        {
            "clean": "The sum of 13 and 25 is",
            "corrupted": "The sum of 41 and 17 is",
            "answer": " 38",
            "wrong_answer": " 58",
            "template": "sum",
            "group": "13 + 25",
        },
    ),
    "mcqa": (
        {
            "prompt": "The box is red. What colour?\nA. red\nB. blue\nAnswer:",
            "choices": COLOURS,
            "answerKey": 0,
            "answerPosition_counterfactual": {
                "prompt": "The box is red. What colour?\nA. blue\nB. red\nAnswer:",
                "choices": {"label": ["A", "B"], "text": ["blue", "red"]},
                "answerKey": 1,
            },
        },
        {
            "clean": "The box is red. What colour?\nA. red\nB. blue\nAnswer:",
            "corrupted": "The box is red. What colour?\nA. blue\nB. red\nAnswer:",
            "answer": " A",
            "wrong_answer": " B",
        },
    ),
    "arc": (
        {
            "id": "q1",
            "question": "Which?",
            "choices": {"label": ["A", "B", "C"], "text": ["x", "y", "z"]},
            "answerKey": "C",
        },
        {
            "clean": "Question: Which?\nA. x\nB. y\nC. z\nAnswer:",
            "corrupted": "Question: Which?\nA. z\nB. y\nC. x\nAnswer:",
            "answer": " C",
            "wrong_answer": " A",
            "group": "Which?",
        },
    ),
    "ravel": (
        {
            "template": "%s is in",
            "prompt": "Oslo is in",
            "entity": "Oslo",
            "attribute": "Country",
            "Country": "Norway",
            "Continent": "Europe",
            "Language": "Norwegian",
            "attribute_counterfactual": {
                "prompt": "People in Lima speak",
                "entity": "Lima",
                "attribute": "Language",
                "Country": "Peru",
            },
        },
        {
            "clean": "Oslo is in",
            "corrupted": "Lima is in",
            "answer": " Norway",
            "wrong_answer": " Peru",
            "template": "%s is in",
            "group": "Oslo",
            "positions": {"entity": "Oslo"},
        },
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_published_row_becomes_a_pair(name: str):
    row, pair = ROWS[name]
    assert converted(name, row, None) == pair
    assert checked_row(pair) == pair


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "docstring"])
def test_the_shape_of_a_row_is_recognised(name: str):
    assert format_of(ROWS[name][0]) == name


@pytest.mark.parametrize("name", ["docstring", "ioi", "greater-than", "gendered-pronouns"])
def test_auto_circuits_shape_is_read_under_each_of_its_names(name: str):
    row, pair = ROWS["docstring"]
    assert converted(name, row, None) == pair


def test_a_key_of_another_shape_is_no_reason_to_read_a_row_as_that_one():
    row, pair = ROWS["greater-than"]
    assert converted("greater-than", row | {"answers": ["52"]}, None) == pair


def test_a_row_with_our_own_keys_is_of_no_format():
    assert format_of({"clean": "a", "corrupted": "b", "answer": "c", "wrong_answer": "d", "label": 1}) is None


def test_another_counterfactual_may_be_asked_for():
    assert converted("ioi", ROWS["ioi"][0], "abc")["corrupted"] == "Cy and Di went. Ed gave a pen to"
    with pytest.raises(Broken, match="no s1_counterfactual") as error:
        converted("ioi", ROWS["ioi"][0], "s1")
    assert error.value.fix == "counterfactual: abc_counterfactual, s2_io_flip_counterfactual"


def test_names_of_an_ioi_table_are_read_from_its_text():
    clean = "When Ann and Bob went to the park, Bob gave the pen to"
    row = {"clean": clean, "corrupted": clean.replace(", Bob", ", Cy"), "correct_idx": 5, "incorrect_idx": 6}
    pair = converted("ioi", row, None)
    assert (pair["answer"], pair["wrong_answer"], pair["group"]) == (" Ann", " Bob", "Ann Bob")


@pytest.mark.parametrize("label", ["0", "99", "x", "-3"])
def test_a_year_without_a_later_and_an_earlier_one_is_left_out(label: str):
    with pytest.raises(Broken, match="leaves no later and earlier one"):
        converted("greater-than", {"clean": "from", "corrupted": "c", "label": label}, None)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("feature-circuits", {"clean_answer": None}, "clean_answer is 'None', not a text"),
        ("mcqa", {"answerKey": 7}, "answerKey 7 is none of the 2 choices"),
        ("mcqa", {"choices": "AB"}, "choices is not a list"),
        ("docstring", {"answers": " b"}, "not lists of texts"),
        ("ravel", {"prompt": "Oslo, Oslo is in"}, "'Oslo' is in the prompt 2 times"),
        ("mib-arithmetic", {"random_counterfactual": None}, "no counterfactual"),
    ],
)
def test_a_row_with_a_wrong_value_says_which(name: str, change: dict[str, Any], message: str):
    with pytest.raises(Broken, match=message):
        converted(name, ROWS[name][0] | change, None)


def test_a_row_of_another_shape_says_what_it_has():
    with pytest.raises(Broken, match="not of the shape ravel, whose keys are attribute, entity, prompt") as error:
        converted("ravel", {"text": "a"}, None)
    assert "this line has text" in error.value.fix


def test_unknown_keys_are_named_at_once_with_what_they_seem_to_be():
    with pytest.raises(
        Broken, match="unknown keys 'clean_prefix', 'patch_prefix', 'clean_answer', 'patch_answer', 'case'"
    ) as error:
        checked_row(ROWS["feature-circuits"][0])
    assert error.value.fix.startswith(
        "format: feature-circuits in the study, or rename: clean_prefix -> clean, patch_prefix"
    )
    with pytest.raises(Broken, match="unknown keys 'sentence', 'target', 'zzz'") as error:
        checked_row({"sentence": "a", "target": "b", "zzz": "c"})
    assert error.value.fix == "sentence -> clean, target -> answer; leave out zzz; or columns: in the study"


def test_columns_are_mapped_and_others_ignored():
    row = {"question": "Which?", "good": "yes", "bad": 0, "other": "x", "id": "a"}
    columns = {"clean": "Q: {question} A:", "corrupted": "Q: {other} A:", "answer": " {good}", "wrong_answer": "bad"}
    assert renamed(row, columns) == {
        "clean": "Q: Which? A:",
        "corrupted": "Q: x A:",
        "answer": " yes",
        "wrong_answer": "0",
        "id": "a",
    }
    with pytest.raises(Broken, match="no value of column 'goood'") as error:
        renamed(row, {"answer": "goood"})
    assert error.value.fix == "'good'?"
