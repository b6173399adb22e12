"""Training gives the numbers it gave before."""

import json

import pytest

from tests.golden.dictionary_curves import FORMS, PATH, curve, platform_name

SAME_PLATFORM, OTHER_PLATFORM = 1e-3, 0.1  # relative; elsewhere rounding picks other features now and then


@pytest.mark.parametrize("kind,activation", FORMS)
def test_loss_curve_is_the_golden_one(kind, activation):
    golden = json.loads(PATH.read_text())
    tolerance = SAME_PLATFORM if golden["platform"] == platform_name() else OTHER_PLATFORM
    expected, found = golden["curves"][f"{kind} {activation}"], curve(kind, activation)
    assert found["fvu"] == pytest.approx(expected["fvu"], rel=tolerance)
    assert found["held_out"] == pytest.approx(expected["held_out"], rel=tolerance)
