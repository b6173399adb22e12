"""Nothing a model says may act on a page, and everything it says can be seen."""

# ruff: noqa: RUF001 - the typography of the pages is under test

from __future__ import annotations

import json

import pytest

from mechstudy.report import formatting as text
from mechstudy.report.figures import LIGHT, themed
from tests.support.report_fixture import HOSTILE_TOKENS


def test_whitespace_is_visible() -> None:
    assert text.visible(" a\n\tb") == "·a↵⇥b"


def test_direction_overrides_zero_width_and_separators_become_symbols() -> None:
    assert text.visible("a\u202eb\u200bc\u2028") == "a‹202E›b‹200B›c‹2028›"


def test_an_unpaired_surrogate_becomes_a_replacement_character() -> None:
    assert text.visible("\ud83d") == "\ufffd"


@pytest.mark.parametrize("token", HOSTILE_TOKENS)
def test_script_data_is_ascii_and_cannot_end_its_script(token: str) -> None:
    written = text.script_json({token: [token]})
    assert written.isascii()
    assert not set("<>&") & set(written)
    assert json.loads(written) == {token: [token]}


def test_nan_and_infinity_become_null() -> None:
    assert text.script_json([float("nan"), float("inf"), 1.5]) == "[null,null,1.5]"


def test_two_names_that_slug_alike_stay_apart() -> None:
    assert text.slug("a b") != text.slug("a/b")
    assert text.slug("../../etc") == text.slug("../../etc")
    assert "/" not in text.slug("../../etc") and "." not in text.slug("../../etc")


def test_numbers_never_read_minus_zero_and_use_a_true_minus() -> None:
    assert text.number(-0.0) == "0.00"
    assert text.number(-2.305) == "−2.31" or text.number(-2.305) == "−2.30"
    assert text.interval([-1e-9, 0.5]) == "[0.00, 0.50]"
    assert text.interval([0.0, 0.5]) == "[0.00, 0.50]"
    assert text.interval([0.003, 0.04]) == "[0.003, 0.040]", "an interval that excludes zero shows it"
    assert text.beside(0.0039, [0.001, 0.007]) == "0.004", "and the number before it is not zero either"
    assert text.decimals(None) == 2


def test_missing_numbers_say_so() -> None:
    assert text.number(None) == text.number(float("nan")) == "n/a"
    assert text.interval_of(None, "ci95", "effect") == text.interval_of({"effect": None}, "ci95", "effect") == "n/a"
    assert text.interval_of({"effect": 1.0, "ci95": None}, "ci95", "effect") == "n/a (one group)"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.5, "500 ms"), (12.34, "12.3 s"), (75, "1 min 15 s"), (7260, "2 h 01 min")]
)
def test_durations_use_the_unit_a_reader_would(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


def test_a_prompt_cannot_pose_as_a_colour() -> None:
    spec = {"mark": {"color": "@effect"}, "data": {"values": [{"token": "@effect"}]}}
    assert themed(spec, LIGHT) == {"mark": {"color": LIGHT["@effect"]}, "data": spec["data"]}
