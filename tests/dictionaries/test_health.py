"""Findings are reported once, with a fix; non-finite rows end the training or are counted."""

import json
import warnings

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.health_config import HealthConfig
from mechstudy.dictionaries.training.health import Health, HealthWarning
from mechstudy.dictionaries.training.trainer import train
from tests.support.dictionary_worlds import SparseWorld

FINE = {"loss": 0.5, "fvu": 0.5, "l0": 4.0, "dead_share": 0.0}
SHORT = TrainConfig(steps=40, batch_size=64, lr=3e-3, tensorboard=False, log_every=1, precision="float32")


def watch(activation: str = "relu", **recipe) -> Health:
    return Health(DictionaryConfig(kind="sae", d_sae=64, k=4, activation=activation), TrainConfig(steps=100, **recipe))


def test_a_healthy_training_is_left_in_peace():
    health = watch()
    assert health.data(2.0) == []
    assert [health.step(step, FINE) for step in range(1, 101)] == [[]] * 100


@pytest.mark.parametrize(
    ("what", "values"),
    [("spike", {"loss": 1.6}), ("dead", {"dead_share": 0.6}), ("l0", {"l0": 9.0}), ("fvu", {"fvu": 1.1})],
)
def test_each_trouble_is_told_once_and_named(what, values):
    health = watch()
    for step in range(1, 51):
        health.step(step, FINE)
    [found] = health.step(51, FINE | values)
    assert (found.step, found.what) == (51, what) and found.fix
    assert health.step(52, FINE | values) == []
    assert watch(health="off").step(60, FINE | values) == []
    stopping = watch(health="stop")
    for step in range(1, 51):
        stopping.step(step, FINE)
    with pytest.raises(MechstudyError) as error:
        stopping.step(51, FINE | values)
    assert error.value.where == "step 51" and error.value.fix == found.fix


def test_rows_are_judged_by_sinks_and_mixing():
    health = watch()
    assert health.sinks(2, 100) == [] and health.mixing(0.8) == []
    assert health.sinks(0, 100, longest_to_median=90.0) == [], "the limit would have left it out"
    [sinks], [mixing] = health.sinks(3, 100), health.mixing(0.79)
    assert (sinks.what, sinks.value, mixing.what, mixing.value) == ("sinks", 0.03, "mixing", 0.79)
    assert sinks.step == 0 and "3.0%" in sinks.text and "window_rows" in mixing.fix
    [long] = watch().sinks(0, 100, longest_to_median=11.0, limited=False)
    assert long.what == "sinks" and "11 times" in long.text
    with pytest.raises(MechstudyError, match=r"3\.0% of the rows are sinks"):
        watch(health="stop").sinks(3, 100)


def test_correct_is_content_with_what_training_mends_itself():
    health = watch(health="correct")
    [mean], [sinks], [mixing] = health.data(20.0), health.sinks(3, 100), health.mixing(0.1)
    assert [found.action for found in (mean, sinks, mixing)] == ["corrected", "corrected", "warned"]
    [long] = watch(health="correct").sinks(0, 100, longest_to_median=11.0, limited=False)
    assert long.action == "warned", "nothing left it out"
    assert watch().data(20.0)[0].action == "warned"


def test_each_kind_of_trouble_has_its_own_word():
    recipe = {"health": {"mean": "off", "sinks": "correct", "dead": "stop"}}
    health = watch(**recipe)
    assert health.data(99.0) == [] and health.sinks(3, 9)[0].action == "corrected"
    with pytest.raises(MechstudyError, match="dead"):
        health.step(1, FINE | {"dead_share": 0.9})
    assert TrainConfig(**recipe).canonical()["health"]["l0"] == "warn"
    assert TrainConfig.model_validate(TrainConfig(**recipe).canonical()) == TrainConfig(**recipe)


def test_words_that_say_nothing_are_refused():
    for wrong in ("wran", {"dead": "correct"}, {"mixing": "correct", "mean": "warn"}):
        with pytest.raises((MechstudyError, ValueError), match=r"not an action|nothing corrects"):
            TrainConfig(health=wrong)


def test_held_out_l0_is_told_but_stops_nothing():
    assert watch().held_out(5.9) == []
    [found] = watch(health="stop").held_out(6.1)
    assert (found.what, found.step) == ("held_out_l0", 100)
    assert watch(health={"l0": "off"}).held_out(50.0) == []


def test_l0_of_topk_and_the_first_quarter_are_not_judged():
    assert watch("batchtopk").step(90, FINE | {"l0": 40.0}) == []
    assert watch().step(10, FINE | {"l0": 40.0, "fvu": 3.0}) == []


def test_a_restored_watch_goes_on_as_if_nothing_had_been():
    first = watch()
    for step in range(1, 20):
        first.step(step, FINE)
    first.step(20, FINE | {"dead_share": 0.9})
    second = watch()
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert [f.what for f in second.step(21, FINE | {"loss": 9.0, "dead_share": 0.9})] == ["spike"]


def test_a_far_away_mean_is_told_in_the_log_and_in_the_dictionary():
    progress = NullProgress()
    world = SparseWorld(d=24, n_true=40, active=2, batch_size=64, offset=30.0)
    dictionary = train(DictionaryConfig(kind="sae", d_sae=64, k=4), SHORT, world, progress=progress)
    assert any("times their spread" in message for message in progress.messages)
    assert dictionary.metadata["health"][0]["what"] == "mean"


def test_without_progress_each_finding_warns_once_at_the_calling_line():
    world = SparseWorld(d=24, n_true=40, active=2, batch_size=64, offset=30.0)
    cfg = DictionaryConfig(kind="sae", d_sae=64, k=4)
    with pytest.warns(HealthWarning, match="mlp_out.3, step 0: the mean of the rows .*; fix: ") as warned:
        found = train(cfg, SHORT, world, site_in="mlp_out.3")
    assert len(warned) == len(found.metadata["health"]) and warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(cfg, SHORT, world, progress=NullProgress())  # what shows it otherwise
        train(cfg, SHORT.model_copy(update={"health": HealthConfig(mean="correct")}), world)  # no warning


class Holed(SparseWorld):
    def batch(self, step: int):
        x, y = super().batch(step)
        x = x.clone()
        x[3, 0], x[9, 2] = torch.nan, torch.inf
        return x, x if y is not None else y


def test_non_finite_rows_are_refused_by_place_or_left_out_and_counted():
    cfg = DictionaryConfig(kind="sae", d_sae=64, k=4)
    world = Holed(d=24, n_true=40, active=2, batch_size=64)
    with pytest.raises(MechstudyError, match="hold NaN or infinity") as error:
        train(cfg, SHORT, world, site_in="mlp_out.3")
    assert error.value.where == "mlp_out.3: step 0, row 3" and error.value.facts["rows affected"].startswith("2 of 64")
    dictionary = train(cfg, SHORT.model_copy(update={"non_finite": "skip"}), world)
    assert dictionary.metadata["rows_left_out"] == 2 * 40
    assert torch.isfinite(dictionary.W_dec).all()
