"""A claim is only called one when its interval, its p-value and its controls allow it."""

# ruff: noqa: RUF001 - the typography of the pages is under test

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechstudy.report.claims import Measured, claims, judge
from mechstudy.report.data import UnitFiles


def claim(tmp_path: Path, kind: str = "ablation", **test: Any):
    summary = {
        "metric": "logit difference",
        "tests": {
            kind: {
                "n": 100, "effect": -2.31, "ci95": [-2.64, -1.98], "control_effect": -0.04,
                "control_ci95": [-0.1, 0.02],
                "p": 0.0, "p_adjusted": 0.001, "difference": -2.27, "difference_ci95": [-2.6, -1.94],
                "label": "ablating the top 10 features", **test,
            }
        },
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return claims(UnitFiles("intervene[b]", tmp_path))[0]


def test_a_supported_claim_reads_as_a_sentence_with_both_intervals(tmp_path: Path) -> None:
    supported = claim(tmp_path)
    assert supported.verdict == "supported"
    assert supported.sentence == (
        "ablating the top 10 features lowers the logit difference by 2.31 [1.98, 2.64] on 100 unseen prompts; "
        "matched controls change it by −0.04 [−0.10, 0.02]"
    )


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"ci95": [-4.0, 0.1]}, "unsupported"),
        ({"ci95": [-4.0, 0.0]}, "unsupported"),
        ({"p_adjusted": 0.05}, "unsupported"),
        ({"p_adjusted": None}, "unsupported"),
        ({"effect": None}, "unsupported"),
        ({"difference_ci95": [-2.0, 0.2]}, "unspecific"),
        ({"control_effect": -3.0, "control_ci95": [-3.2, -2.8], "difference_ci95": [0.3, 1.1]}, "unspecific"),
        ({"difference_ci95": None, "control_ci95": [-2.2, 2.0]}, "unspecific"),
        ({"difference_ci95": None}, "supported"),
        ({"p_difference_adjusted": 0.2}, "unspecific"),
        ({"n_clusters": 8}, "caveat"),
        ({"n_clusters": 5}, "unsupported"),
        ({"control_effect": None, "control_ci95": None}, "caveat"),
        ({"control_ci95": [-0.1, -0.01]}, "caveat"),
        ({"n": 12}, "caveat"),
    ],
)
def test_the_verdict_follows_the_numbers(tmp_path: Path, change: dict[str, Any], verdict: str) -> None:
    assert claim(tmp_path, **change).verdict == verdict


def test_a_claim_not_shown_does_not_say_that_anything_was_lowered(tmp_path: Path) -> None:
    sentence = claim(tmp_path, ci95=[-4.0, 0.1]).sentence
    assert "does not measurably change" in sentence
    assert "lowers" not in sentence


@pytest.mark.parametrize(("control", "share"), [(-0.07, "3%"), (-0.008, "less than 1%")])
def test_controls_that_are_not_null_are_put_beside_the_effect(tmp_path: Path, control: float, share: str) -> None:
    found = claim(tmp_path, control_effect=control, control_ci95=[control * 1.2, control * 0.8])
    assert list(found.caveats) == [f"The controls are not null, their CI excludes zero too, {share} of the effect."]


def test_an_ablation_that_helps_is_pointed_out(tmp_path: Path) -> None:
    raising = claim(tmp_path, effect=2.0, ci95=[1.5, 2.5], difference_ci95=[1.4, 2.6])
    assert raising.verdict == "caveat"
    assert any("other way" in caveat for caveat in raising.caveats)


def test_an_interval_that_ends_at_zero_does_not_exclude_it() -> None:
    assert not Measured.of({"ci95": [0.0, 1.0]}).excludes_zero
    assert Measured.of({"ci95": [1e-9, 1.0]}).excludes_zero
    assert not Measured.of({}).excludes_zero
    assert not Measured.of({"ci95": [None, 1.0]}).excludes_zero


def test_without_an_interval_nothing_is_claimed() -> None:
    assert judge(Measured(-2.0, None), Measured(0.0, (-0.1, 0.1)), Measured(-2.0, (-2.0, -1.9)), 0.001) == "unsupported"


def test_a_raw_interval_beside_zero_that_fails_correction_says_so(tmp_path: Path) -> None:
    sentence = claim(tmp_path, effect=0.02, ci95=[0.01, 0.05], p_adjusted=0.11).sentence
    assert "is not shown to change" in sentence and "measurably" not in sentence
    assert "adjusted p = 0.11: not significant among all tests" in sentence


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"n_clusters": 3}, "too few groups: with 3 groups of prompts p cannot fall below 0.25"),
        ({"n_clusters": 1, "ci95": None}, "too few groups: all prompts are of one group"),
        ({"ci95": None}, "too few groups: all prompts are of one group"),
        ({"effect": 0.0, "ci95": [0.0, 0.0]}, "every effect is exactly zero"),
        ({"effect": 0.0, "ci95": None, "ci95_missing": "equal in every group", "n_clusters": 24}, "exactly zero"),
        ({"ci95": [-2.31, -2.31]}, "the effect is equal in every group"),
        ({"ci95": [-4.0, 0.1]}, "these data do not distinguish the effect from zero"),
    ],
)
def test_a_claim_not_shown_names_its_reason(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    not_shown = claim(tmp_path, **change)
    assert not_shown.verdict == "unsupported" and why in not_shown.why
    assert "None" not in not_shown.sentence and "nan" not in not_shown.sentence.lower()


def test_an_effect_without_an_interval_says_why_beside_its_value(tmp_path: Path) -> None:
    sentence = claim(tmp_path, ci95=None, n_clusters=1).sentence
    assert "does not measurably change the logit difference: −2.31, interval n/a (one group)" in sentence
    assert claim(tmp_path, effect=0.0, ci95=[0.0, 0.0]).effect.interval == "n/a (equal in every group)"


def test_controls_that_change_nothing_at_all_still_tell_an_effect_from_themselves(tmp_path: Path) -> None:
    silent = claim(tmp_path, control_effect=0.0, control_ci95=None, control_ci95_missing="equal in every group")
    assert silent.verdict == "supported" and not silent.control.excludes_zero
    same = claim(tmp_path, difference=0.0, difference_ci95=None, difference_ci95_missing="equal in every group")
    assert same.verdict == "unspecific"
