import pytest
import torch

import mechstudy as ms
from mechstudy.dictionaries.training.trainer import train as train_dictionary

RECIPE = ms.TrainConfig(steps=10, batch_size=64, precision="float32")


def test_the_dictionary_is_the_one_that_a_study_trains():
    rows = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    config = ms.DictionaryConfig(kind="sae", k=4)
    ours, theirs = ms.train(rows, config, RECIPE, site_in="mlp_out.1"), train_dictionary(
        config, RECIPE, rows, site_in="mlp_out.1"
    )  # fmt: skip
    assert torch.equal(ours.W_enc, theirs.W_enc)
    assert ours.cfg == theirs.cfg


def test_captured_activations_make_a_transcoder_that_graphs_take(world):
    acts = ms.capture(world.model, ["some words of a text"] * 20, ["mlp_in.1", "mlp_out.1"])
    made = ms.train(
        (acts["mlp_in.1"], acts["mlp_out.1"]),
        ms.DictionaryConfig(kind="transcoder", k=4, d_sae=32),
        RECIPE,
        site_in="mlp_in.1",
        site_out="mlp_out.1",
    )
    assert len(ms.attribute(world.model, ms.load_dictionaries(made), "some words").nodes)


def test_evaluation_is_of_the_rows_given():
    rows = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    sae = ms.train(rows, ms.DictionaryConfig(kind="sae", k=4), RECIPE)
    found = ms.evaluate(sae, rows[:100])
    residual = (rows[:100] - sae.reconstruct(rows[:100])).square().sum()
    variance = (rows[:100] - rows[:100].mean(0)).square().sum()
    assert found["fvu"] == pytest.approx(float(residual / variance), rel=1e-4)


def test_a_cross_layer_transcoder_is_trained_alike():
    rows = torch.randn(256, 2, 8), torch.randn(256, 2, 8)
    config = ms.DictionaryConfig(kind="clt", activation="batchtopk", n_sites=2, k=4, d_sae=32)
    assert type(ms.train(rows, config, RECIPE)).__name__ == "CrossLayerTranscoder"


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(ms.MechstudyError, match="not enough rows for one batch"):
        ms.train(torch.randn(8, 4), ms.DictionaryConfig(kind="sae", k=2), RECIPE)
