"""Training on plain tensors, pairs, lists and generators."""

import re
import runpy
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.reconstruction import evaluate
from mechstudy.dictionaries.training.rows import IterableRows, TensorRows, rows_of
from mechstudy.dictionaries.training.trainer import train
from tests.support.dictionary_worlds import SparseWorld

WORLD = SparseWorld(d=16, n_true=24, active=2, batch_size=512)
RECIPE = TrainConfig(steps=60, batch_size=256, lr=1e-2, precision="float32", tensorboard=False)
SAE = DictionaryConfig(kind="sae", d_sae=48, k=3)


def pieces(n: int = 40):
    return [WORLD.batch(i)[0][: 100 + i] for i in range(n)]


def test_rows_in_memory_are_each_seen_once_an_epoch_in_another_order():
    rows = TensorRows(torch.arange(100.0)[:, None], batch_size=30)
    first, second = (torch.cat([x for x, _ in islice(rows.batches(s), 3)]).flatten() for s in (0, 3))
    assert len(set(first.tolist())) == 90 and len(set(second.tolist())) == 90
    assert first.tolist() != second.tolist()
    assert torch.equal(next(rows.batches(4))[0].flatten(), second[30:60])


@pytest.mark.parametrize("kind", ["list", "generator"])
def test_an_iterables_rows_come_in_its_order_whatever_the_pieces(kind):
    given = pieces(5)
    source = IterableRows(given if kind == "list" else (p for p in given), batch_size=64)
    whole = torch.cat(given)
    n = len(whole) // 64
    found = torch.cat([x for x, _ in islice(source.batches(), n)])
    torch.testing.assert_close(found, whole[: n * 64], rtol=0, atol=0)
    again = torch.cat([x for x, _ in islice(source.batches(), 3)])
    torch.testing.assert_close(again, whole[:192], rtol=0, atol=0)


def test_a_list_starts_over_and_can_be_resumed_a_generator_cannot():
    source = IterableRows(pieces(2), batch_size=64)
    straight = [x for x, _ in islice(source.batches(), 12)]
    torch.testing.assert_close(next(source.batches(11))[0], straight[11], rtol=0, atol=0)
    with pytest.raises(MechstudyError, match="cannot be resumed"):
        IterableRows(iter(pieces(2)), batch_size=64).batches(3)


@pytest.mark.parametrize("source", ["tensor", "list", "generator"])
def test_a_dictionary_learns_from_whatever_holds_rows(source):
    whole = torch.cat([WORLD.batch(i)[0] for i in range(40)])
    given = {"tensor": whole, "list": list(whole.split(300)), "generator": iter(whole.split(300))}[source]
    dictionary = train(SAE, RECIPE, given)
    assert evaluate(dictionary, [WORLD.batch(1000)])["r2"] > 0.7
    assert dictionary.cfg.site_in == dictionary.cfg.site_out == "activations"


def test_a_pair_of_tensors_trains_a_transcoder():
    world = SparseWorld(d=16, n_true=24, active=2, batch_size=512, other_target=True)
    x, y = (torch.cat(parts) for parts in zip(*(world.batch(i) for i in range(20)), strict=True))
    dictionary = train(SAE.model_copy(update={"kind": "skip_transcoder"}), RECIPE, (x, y), site_in="in", site_out="out")
    assert evaluate(dictionary, [world.batch(1000)])["r2"] > 0.7


def test_a_generator_that_ends_early_says_at_which_step():
    with pytest.raises(MechstudyError, match="ended at step 15 of 60"):
        train(SAE, RECIPE, iter(torch.cat(pieces(40))[: 256 * 15 + 9].split(100)))


TWO = torch.randn(64, 2, 8)


@pytest.mark.parametrize(
    ("source", "options", "message", "fix"),
    [
        (3.0, {}, "a float holds no rows", "a tensor or NumPy array"),
        ("rows.pt", {}, "a str holds no rows", "torch.load"),
        (Path("rows.npy"), {}, "holds no rows", "numpy.load"),
        ({"x": torch.randn(64, 8)}, {}, "a dict holds no rows", "source['x']"),
        ([[1.0, 2.0]], {}, "batch 0: a float holds no rows", "a tensor"),
        ([{"x": torch.randn(64, 8)}], {}, "batch 0: a dict holds no rows", "a tensor"),
        ([(torch.randn(8, 2),) * 3], {}, "batch 0: a batch of 3 things", "(inputs, targets)"),
        (torch.zeros(2, 3, 4), {}, r"rows are \[N, d_in\]", "rows.flatten(0, -2)"),
        (torch.zeros(0, 64), {}, "not enough rows", "batch_size"),
        (torch.randn(5, 64), {}, "not enough rows", "batch_size"),
        ([torch.randn(5, 64)], {}, "not enough rows", "batch_size"),
        (iter(()), {}, "not enough rows", "batch_size"),
        (torch.ones(64, 8, dtype=torch.int64), {}, "the rows hold int64", "rows.float()"),
        (np.ones((64, 8), dtype=np.int32), {}, "the rows hold int32", "astype"),
        ([torch.randn(5, 8), torch.randn(5, 7)], {}, "batch 1: the inputs are 7 wide, .* before 8", "one width"),
        ([(torch.randn(9, 8), torch.randn(8, 8))], {}, "batch 0: 9 inputs, but targets", "one target"),
        ((torch.zeros(9, 2), torch.zeros(8, 2)), {}, "9 inputs, but targets", "one target"),
        (torch.randn(64, 8), {"needs_targets": True}, "the targets are missing", "(inputs, targets)"),
        ([torch.randn(64, 8)], {"needs_targets": True}, "batch 0: the targets are missing", "(inputs, targets)"),
        (TWO.flatten(1), {"n_sites": 2}, r"shape \[64, 16\] do not hold 2 sites", "rows.unflatten(-1, (2, -1))"),
        ([TWO], {"n_sites": 3}, r"batch 0: rows of shape \[64, 2, 8\] do not hold 3 sites", "torch.stack"),
    ],
)
def test_what_holds_no_rows_is_refused_with_what_to_give(source, options, message, fix):
    with pytest.raises(MechstudyError) as error:
        rows_of(source, 8, **options)
    assert re.search(message, str(error.value))
    assert fix in (error.value.fix or "")


@pytest.mark.parametrize("shape", ["array", "pair", "list", "pairs"])
def test_numpy_arrays_are_rows_like_tensors(shape):
    x, y = np.random.default_rng(0).normal(size=(2, 40, 6)).astype(np.float32)
    x.setflags(write=False)  # as of a file mapped into memory
    given = {"array": x, "pair": (x, y), "list": [x[:9], x[9:]], "pairs": [[x[:9], y[:9]], (x[9:], y[9:])]}[shape]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = next(rows_of(given, 40).batches())
    order = found[0][:, 0].argsort()
    torch.testing.assert_close(found[0][order], torch.tensor(x)[torch.tensor(x)[:, 0].argsort()])
    assert (found[1] is found[0]) == (shape in ("array", "list"))


def test_batches_of_several_sites_are_put_side_by_side():
    torch.testing.assert_close(next(rows_of([TWO], 64, 0, 2).batches())[0], TWO.flatten(1))


def test_a_generator_with_a_checkpoint_is_refused_before_the_first_step(tmp_path):
    rows = torch.cat(pieces(40)).split(100)
    with pytest.raises(MechstudyError, match="cannot be resumed") as error:
        train(SAE, RECIPE, iter(rows), checkpoint=tmp_path / "c")
    assert "a list, a tensor, a DataLoader or a store" in str(error.value.fix)
    train(SAE, RECIPE.model_copy(update={"steps": 2}), rows, checkpoint=tmp_path / "c")


@pytest.mark.parametrize(
    ("kind", "trained", "sites"),
    [
        ("clt", CrossLayerTranscoder, ("mlp_in", "mlp_out")),
        ("crosscoder", Dictionary, ("activations", "activations")),
        ("transcoder", Dictionary, ("activations", "target of activations")),
    ],
)
def test_the_kind_decides_what_is_trained_and_its_default_sites(kind, trained, sites):
    n_sites = 1 if kind == "transcoder" else 2
    cfg = DictionaryConfig(kind=kind, n_sites=n_sites, activation="batchtopk", d_sae=8, k=2)
    x = torch.randn(2, 64, n_sites, 6, generator=torch.Generator().manual_seed(0)).squeeze(2)
    recipe = RECIPE.model_copy(update={"steps": 2, "batch_size": 32})
    dictionary = train(cfg, recipe, x[0] if kind == "crosscoder" else (x[0], x[1]))
    assert isinstance(dictionary, trained)
    source = dictionary if kind == "clt" else dictionary.cfg
    assert (source.site_in, source.site_out) == sites


@pytest.mark.slow
def test_the_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_dictionary.py"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train_dictionary.py"))
    assert "'r2': 0." in capsys.readouterr().out
    assert (tmp_path / "runs" / "my-dictionary" / "sae_weights.safetensors").exists()
