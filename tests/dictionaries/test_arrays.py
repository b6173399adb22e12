"""What a trained dictionary takes: tensors, NumPy arrays, sites apart or side by side; and what it says of itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.reconstruction import evaluate, fvu
from mechstudy.dictionaries.formats.describe import describe
from mechstudy.dictionaries.training.trainer import train
from tests.support.dictionary_files import D, F, draw, trained_clt
from tests.support.dictionary_worlds import random_dictionary

X = draw(50, D, seed=7)


@pytest.fixture(scope="module")
def crosscoder() -> Dictionary:
    recipe = TrainConfig(steps=3, batch_size=32, tensorboard=False, precision="float32", health="off")
    cfg = DictionaryConfig(kind="crosscoder", n_sites=2, activation="batchtopk", d_sae=16, k=2)
    return train(cfg, recipe, torch.randn(64, 2, 4, generator=torch.Generator().manual_seed(0)))


def test_numpy_rows_and_other_precisions_are_encoded_like_tensors():
    dictionary = random_dictionary("skip_transcoder", "jumprelu")
    x = draw(9, dictionary.cfg.d_in, seed=1)
    for name in ("encode", "reconstruct", "pre_activations"):
        function = getattr(dictionary, name)
        torch.testing.assert_close(function(x.numpy()), function(x), rtol=0, atol=0)
        torch.testing.assert_close(function(x.float()), function(x.float().double()), rtol=0, atol=0)
    clt = trained_clt(3)
    x = draw(9, 3, D, seed=1)
    torch.testing.assert_close(clt.reconstruct(x.numpy()), clt.reconstruct(x), rtol=0, atol=0)


@pytest.mark.parametrize("given", ["tokens", "list", "wide"])
def test_what_cannot_be_encoded_is_refused(given, crosscoder):
    rows = {"tokens": np.ones((3, 8), dtype=np.int64), "list": [[0.0] * 8], "wide": torch.zeros(3, 4, 2)}[given]
    message = {"tokens": "the rows hold int64", "list": "a list holds no rows", "wide": "2 wide, .* reads 8"}[given]
    with pytest.raises(MechstudyError, match=message) as error:
        crosscoder.encode(rows)
    assert error.value.fix


def test_a_crosscoder_takes_its_sites_apart_or_side_by_side(crosscoder):
    x = torch.randn(40, 2, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(crosscoder.encode(x), crosscoder.encode(x.flatten(1)), rtol=0, atol=0)
    torch.testing.assert_close(crosscoder.reconstruct(x), crosscoder.reconstruct(x.flatten(1)).view(40, 2, 4))
    expected = evaluate(crosscoder, [(x.flatten(1), x.flatten(1))])
    for given in (x, (x, x), [x], [(x[:10], x[:10]), x[10:].numpy()], iter([x]), [x.flatten(1)]):
        assert evaluate(crosscoder, given)["fvu"] == pytest.approx(expected["fvu"], abs=1e-9)


def test_a_crosscoder_s_file_says_what_it_is(crosscoder, tmp_path):
    crosscoder.save(tmp_path)
    [entry] = describe(tmp_path)
    assert entry["kind"] == "crosscoder of 2 sites"
    again = Dictionary.load(tmp_path)
    assert repr(again) == "Dictionary(crosscoder of 2 sites, jumprelu, 8 -> 16 -> 8, k=2, activations)"
    assert repr(random_dictionary("transcoder")).endswith("k=3, mlp_in.3 -> mlp_out.3)")
    assert repr(trained_clt(2)) == f"CrossLayerTranscoder(2 layers, {D} -> {F} -> {D} in each, k=2, mlp_in -> mlp_out)"


@pytest.mark.parametrize("n_sites", ["two", 0, 3, True])
def test_a_file_with_sites_that_cannot_be_is_refused(n_sites, crosscoder, tmp_path):
    crosscoder.save(tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    cfg["metadata"]["mechstudy"]["metadata"]["n_sites"] = n_sites
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(MechstudyError, match=r"n_sites must be|does not hold 3 sites"):
        Dictionary.load(tmp_path)


def test_an_sae_is_judged_by_whatever_holds_its_rows():
    sae = random_dictionary("sae", "jumprelu")
    x = draw(50, sae.cfg.d_in, seed=7)
    expected = evaluate(sae, [(x, x)])
    for given in (x, x.numpy(), (x, x), [x], [x[:20], (x[20:], x[20:])], (part for part in x.split(7))):
        assert evaluate(sae, given)["fvu"] == pytest.approx(expected["fvu"])


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("sae", [X[:, :3]], "batch 0: the inputs are 3 wide, but this dictionary reads"),
        ("transcoder", [(X, X[:, :2])], "batch 0: the targets are 2 wide, but this dictionary writes"),
        ("transcoder", X, "the targets are missing"),
        ("transcoder", [X], "batch 0: the targets are missing"),
        ("sae", "rows.pt", "a str holds no rows"),
        ("sae", 3, "a int holds no rows"),
    ],
)
def test_rows_that_judge_nothing_are_refused(kind, given, message):
    dictionary = random_dictionary(kind)
    if dictionary.cfg.d_in != D:  # the rows above are D wide
        given = [(draw(9, dictionary.cfg.d_in, seed=1), X[:9, :2])] if "2 wide" in message else given
    with pytest.raises(MechstudyError, match=re.escape(message)):
        evaluate(dictionary, given)


def test_a_cross_layer_transcoder_is_judged_layer_by_layer():
    clt = trained_clt(3)
    x, y = draw(50, 3, D, seed=7), draw(50, 3, D, seed=8)
    y[:, 2] = 1.0  # nothing to explain there
    found = evaluate(clt, [(x[:30], y[:30]), (x[30:], y[30:])])
    y_hat, on = clt.reconstruct(x), clt.encode(x) > 0
    assert found["fvu"] == pytest.approx(fvu(y.flatten(1), y_hat.flatten(1))) and found["r2"] == 1 - found["fvu"]
    assert found["fvu_per_layer"][:2] == pytest.approx([fvu(y[:, layer], y_hat[:, layer]) for layer in range(2)])
    assert found["fvu_per_layer"][2] is None
    assert found["l0"] == pytest.approx(float(on.sum()) / 50) == pytest.approx(sum(found["l0_per_layer"]))
    assert found["dead_share"] == pytest.approx(float((~on.any(0)).double().mean()))
    assert found["n_rows"] == 50
    with pytest.raises(MechstudyError, match="the targets are missing"):
        evaluate(clt, x)
    x[3, 1, 0] = torch.nan
    with pytest.raises(MechstudyError, match="mlp_out: batch 0, row 3"):
        evaluate(clt, [(x, y)])
    assert evaluate(clt, [(x, y)], non_finite="skip")["not_finite_rows"] == 1
