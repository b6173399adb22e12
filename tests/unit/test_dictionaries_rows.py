"""Training on plain tensors, pairs, lists and generators."""

import runpy
from itertools import islice
from pathlib import Path

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.evaluate import evaluate
from mechstudy.dictionaries.rows import IterableRows, TensorRows, rows_of
from mechstudy.dictionaries.train import train
from tests.unit.dictionary_worlds import SparseWorld

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


def test_what_holds_no_rows_is_refused():
    with pytest.raises(MechstudyError, match="a float holds no rows"):
        rows_of(3.0, 8)
    with pytest.raises(MechstudyError, match=r"rows are \[N, d_in\]"):
        rows_of(torch.zeros(2, 3, 4), 8)
    with pytest.raises(MechstudyError, match="not enough rows"):
        rows_of([torch.zeros(0, 3)], 8)
    with pytest.raises(MechstudyError, match="4 inputs, but targets"):
        TensorRows(torch.zeros(4, 2), torch.zeros(3, 2))


def test_the_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_dictionary.py"])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train_dictionary.py"))
    assert "'r2': 0." in capsys.readouterr().out
    assert (tmp_path / "runs" / "my-dictionary" / "sae_weights.safetensors").exists()
