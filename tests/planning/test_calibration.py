"""From pilots to fits: what is paid once, what by every unit, what grows, and how certain that is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mechstudy.planning import calibration as module
from mechstudy.planning.calibration import (
    Pilot,
    fit,
    fit_all,
    joint_spread,
    read_calibration,
)
from mechstudy.planning.cost_model import kind_of
from mechstudy.study.phases import registry
from tests.support.toy_units import unit


def pilot(seconds: float, modelled: float, *, kind: str = "train", first: bool = False, peak: int = 0) -> Pilot:
    return Pilot(kind, f"{kind}[0]", seconds, modelled, peak, 0, first=first)


def test_pilots_separate_rate_constant_and_once_only_cost():
    found = fit([pilot(9.0, 1.0, first=True), pilot(4.0, 1.0), pilot(10.0, 4.0)])
    assert (found.factor, found.fixed, found.once) == pytest.approx((2.0, 2.0, 5.0))


def test_pilots_of_one_length_give_a_factor_alone():
    found = fit([pilot(3.0, 1.0), pilot(5.0, 1.0)])
    assert (found.factor, found.fixed, found.n) == (4.0, 0.0, 2)


def test_a_short_pilot_that_was_disturbed_does_not_make_long_ones_free():
    found = fit([pilot(10.0, 1.0), pilot(8.0, 4.0)])
    assert (found.factor, found.fixed) == (2.0, 0.0)


def test_a_unit_the_model_says_nothing_of_takes_what_it_took():
    found = fit([pilot(9.0, 0.001)])
    assert found.factor == 1.0 and found.fixed == pytest.approx(8.999)


def test_memory_beyond_the_plan_is_that_of_the_worst_pilot():
    assert fit([pilot(1.0, 1.0, peak=70), pilot(1.0, 1.0, peak=50)]).extra_bytes == 70


def test_repeats_of_all_kinds_together_say_how_certain_each_is():
    steady = [pilot(1.0, 1.0), pilot(1.0, 1.0)]
    noisy = [pilot(1.0, 1.0, kind="attribute"), pilot(3.0, 1.0, kind="attribute")]
    fits = fit_all([*steady, *noisy], "now").fits
    noise = (0.5 / 2) ** 0.5
    assert fits["train"].spread == fits["attribute"].spread == pytest.approx(min(1.0, 2.92 * noise / 2**0.5))
    assert fit_all(steady, "now").fits["train"].spread == module.LEAST_SPREAD
    assert fit_all([pilot(1.0, 1.0)], "now").fits["train"].spread == 0.25, "nothing was repeated"


def test_kinds_err_independently():
    assert joint_spread([(30.0, 0.1), (40.0, 0.1)]) == pytest.approx(5.0)


def test_a_variant_is_trained_as_a_dictionary_is():
    train, variant = (unit(name) for name in ("train[0]", "variant[0:again]"))
    trained = replace(train, phase=registry.phase("train"))
    assert kind_of(replace(variant, phase=registry.phase("variant"))) == kind_of(trained) == "train"


def test_a_calibration_comes_back_on_its_own_machine_alone(tmp_path, monkeypatch):
    made = fit_all([pilot(2.0, 1.0), pilot(4.0, 2.0)], "2026-01-01", "bfloat16", 2)
    (tmp_path / module.FILE).write_text(json.dumps({"calibration": made.as_json()}))
    found, why = read_calibration(tmp_path, 1)
    assert found is None and "for 2 threads, this plan is for 1" in (why or "")
    found, why = read_calibration(tmp_path, 2)
    assert why is None and found is not None and found.fits == made.fits and found.auto == "bfloat16"
    monkeypatch.setattr(module, "machine_id", lambda: "another")
    found, why = read_calibration(tmp_path, 2)
    assert found is None and "on another machine" in (why or "")
    (tmp_path / module.FILE).write_text('{"go": true, "tests": []}')  # of an earlier version
    assert read_calibration(tmp_path, 2) == (None, None)
