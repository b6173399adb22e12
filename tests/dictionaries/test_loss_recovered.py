"""The share of the loss recovered, and where it is none."""

import json

import pytest

from mechstudy.dictionaries.evaluation.loss_recovered import checked, loss_recovered
from mechstudy.dictionaries.formats.describe import metrics_of


def test_the_share_is_one_for_the_models_loss_and_zero_for_that_of_zeros():
    assert loss_recovered(3.0, 3.0, 4.0) == (1.0, None)
    assert loss_recovered(3.0, 4.0, 4.0) == (0.0, None)
    assert loss_recovered(3.0, 3.25, 4.0) == (0.75, None)
    assert loss_recovered(3.0, 3.0 - 1e-7, 4.0) == (1.0, None)  # rounding
    assert loss_recovered(3.0, 4.0 + 1e-7, 4.0) == (0.0, None)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ((3.41, 3.2, 3.38), "zeros at the site lower the loss"),
        ((3.41, 3.39, 3.38), "zeros at the site lower the loss"),  # the quotient is 0.33
        ((3.0, 2.9, 4.0), "the reconstruction lowers the loss"),  # 1.1
        ((3.0, 4.5, 4.0), "the reconstruction is worse than zeros"),  # -0.5
        ((3.0, 3.1, 3.0), "zeros at the site do not change the loss"),
    ],
)
def test_a_quotient_that_is_no_share_is_undefined_with_its_reason(losses, reason):
    assert loss_recovered(*losses) == (None, reason)
    recorded = dict(zip(("ce_model", "ce_dictionary", "ce_zero"), losses, strict=True)) | {"ce_loss_recovered": 1.31}
    assert checked(recorded) == recorded | {"ce_loss_recovered": None, "ce_loss_recovered_undefined": reason}


def test_a_defined_share_is_left_as_it_was_recorded():
    recorded = {"ce_model": 3.0, "ce_dictionary": 3.25, "ce_zero": 4.0, "ce_loss_recovered": 0.75, "fvu": 0.2}
    assert checked(recorded) == recorded
    assert checked({"ce_loss_recovered": None}) == {"ce_loss_recovered": None}  # not evaluated in the model


def test_summaries_and_cards_of_a_dictionary_leave_out_a_quotient_that_is_no_share(tmp_path):
    losses = {"ce_model": 3.41, "ce_dictionary": 3.2, "ce_zero": 3.38}
    (tmp_path / "evaluation.json").write_text(json.dumps(losses | {"ce_loss_recovered": 1.31, "r2": 0.5}))
    assert metrics_of(tmp_path) == losses | {"r2": 0.5}
