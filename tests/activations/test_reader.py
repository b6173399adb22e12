"""Training batches: what is dropped, in which order, and from which step."""

from __future__ import annotations

import os
import threading
from itertools import islice

import numpy as np
import pytest
import torch

from mechstudy.activations import reader as module
from mechstudy.activations import row_file
from mechstudy.activations.reader import RowReader
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

IN, OUT = Site("mlp_in", 0), Site("mlp_out", 0)
CONTEXT, N_ROWS = 8, 400


@pytest.fixture(params=["bfloat16", "float32", "int8"])
def store(request, tmp_path, monkeypatch):
    """Rows (number mod 251, number // 251 + 100); every 50th is a sink; small blocks, so that there are many."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 256)
    writer = StoreWriter(tmp_path, {IN: 2, OUT: 3}, N_ROWS, request.param, seed=1)
    numbers = torch.arange(N_ROWS)
    x = torch.stack([numbers % 251, numbers // 251 + 100], dim=1).float()
    y = torch.stack([numbers % 251, numbers // 251, torch.ones(N_ROWS)], dim=1).float()
    x[1::50] *= 64
    writer.put(0, {IN: x, OUT: y}, numbers // CONTEXT, numbers % CONTEXT, numbers * 0)
    return writer.close()


def numbers_of(batch) -> list[int]:
    y = batch[1].float()
    return (y[:, 0].round() + 251 * y[:, 1].round()).long().tolist()


def test_an_epoch_is_every_row_once_but_first_positions_and_sinks(store):
    reader = RowReader(store, IN, OUT, 10)
    expected = {r for r in range(N_ROWS) if r % CONTEXT and r % 50 != 1}
    assert reader.rows_per_epoch == len(expected)
    assert reader.sink_rows == len([r for r in range(1, N_ROWS, 50) if r % CONTEXT])
    assert (reader.d_in, reader.d_out, reader.n_rows) == (2, 3, N_ROWS)
    assert reader.max_input_norm == 10 * store.sites[IN].median_norm
    stream = [n for batch in islice(reader.batches(), 80) for n in numbers_of(batch)]
    epoch = stream[: reader.rows_per_epoch]
    assert len(epoch) == len(set(epoch)) and set(epoch) == expected
    second = stream[reader.rows_per_epoch : 2 * reader.rows_per_epoch]
    assert second == epoch


@pytest.mark.parametrize("widen", [False, True])
def test_batches_are_as_stored_or_widened_with_inputs_and_outputs_paired(store, widen):
    dtype = torch.bfloat16 if store.dtype == "bfloat16" and not widen else torch.float32
    for x, y in islice(RowReader(store, IN, OUT, 16, widen=widen).batches(), 30):
        assert x.dtype == y.dtype == dtype
        assert x.shape == (16, 2) and y.shape == (16, 3)
        x, y = x.float(), y.float()
        assert (x[:, 0] - y[:, 0]).abs().max() < 1 and (x[:, 1] - y[:, 1] - 100).abs().max() < 1


@pytest.mark.parametrize("batch_size", [1, 7, 64, 333, 1000])
def test_starting_at_a_step_equals_skipping_to_it(store, batch_size):
    reader = RowReader(store, IN, OUT, batch_size, seed=5)
    whole = list(islice(reader.batches(), 40))
    for start in (1, 5, 17, 39):
        x, y = next(reader.batches(start))
        assert torch.equal(x, whole[start][0]) and torch.equal(y, whole[start][1])


def test_the_seed_turns_the_order_and_the_same_seed_repeats_it(store):
    first = [numbers_of(next(RowReader(store, IN, OUT, 50, seed=s).batches())) for s in (0, 0, 1)]
    assert first[0] == first[1] != first[2]


def test_nothing_is_dropped_when_nothing_is_to_be(store):
    reader = RowReader(store, IN, OUT, N_ROWS, drop_first_position=False, sink_ratio=None)
    assert reader.max_input_norm is None
    assert sorted(numbers_of(next(reader.batches()))) == list(range(N_ROWS))


def test_one_site_for_both_gives_one_tensor(store):
    x, y = next(RowReader(store, OUT, OUT, 5).batches())
    assert x is y


def test_the_reading_thread_ends_with_its_iterator(store):
    before = threading.active_count()
    batches = RowReader(store, IN, OUT, 5).batches()
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("batch_size", [5, 150])
def test_batches_handed_out_are_not_overwritten_by_later_reads(store, batch_size):
    batches = RowReader(store, IN, OUT, batch_size).batches()
    x, y = next(batches)
    copies, part = (x.clone(), y[1:3].clone()), y[1:3]
    del y
    for _ in islice(batches, 50):
        pass
    assert torch.equal(x, copies[0]) and torch.equal(part, copies[1])


def test_memory_of_batches_that_nobody_holds_is_used_again(store):
    batches = RowReader(store, IN, OUT, 150).batches()
    places = {x.data_ptr() for x, _ in islice(batches, 100)}
    assert len(places) < 12


def test_rows_far_apart_are_read_as_well_as_neighbours(store, monkeypatch):
    expected = [x.clone() for x, _ in islice(RowReader(store, IN, OUT, 7).batches(), 60)]
    monkeypatch.setattr(row_file, "MAX_GAP", 0)
    monkeypatch.setattr(row_file, "MAX_PIECES", 3)
    for x, (y, _) in zip(expected, RowReader(store, IN, OUT, 7).batches(), strict=False):
        assert torch.equal(x, y)


def test_rows_that_come_in_pieces_are_put_together(store, monkeypatch):
    expected = [x.clone() for x, _ in islice(RowReader(store, IN, OUT, 7).batches(), 60)]
    real = os.preadv

    def little(file, pieces, offset):
        return real(file, [pieces[0][:5]], offset)

    monkeypatch.setattr(os, "preadv", little)
    for x, (y, _) in zip(expected, RowReader(store, IN, OUT, 7).batches(), strict=False):
        assert torch.equal(x, y)


def test_rows_that_are_not_finite_reach_the_training(tmp_path):
    writer = StoreWriter(tmp_path, {IN: 2}, 40, "int8")
    x = torch.ones(40, 2)
    x[11, 1], x[12, 0] = torch.nan, torch.inf
    writer.put(0, {IN: x}, np.arange(40), np.ones(40, int), np.arange(40))
    store = writer.close()
    reader = RowReader(store, IN, IN, 40)
    broken = ~torch.isfinite(next(reader.batches())[0]).all(1)
    assert int(broken.sum()) == 2 and reader.sink_rows == 0
    assert store.sites[IN].not_finite == 2 and store.sites[IN].count == 38
    assert store.mean(IN).tolist() == [1, 1]


def test_a_file_truncated_after_opening_is_named(store):
    reader = RowReader(store, IN, OUT, 300)
    os.truncate(store.folder / "mlp_out.0.bin", 100)
    with pytest.raises(MechstudyError, match=r"mlp_out\.0\.bin ended early"):
        next(reader.batches())


def test_a_site_that_was_not_captured_is_refused_with_those_that_were(store):
    with pytest.raises(MechstudyError, match=r"mlp_in\.1 was not captured") as caught:
        RowReader(store, Site("mlp_in", 1), OUT, 4)
    assert "mlp_in.0, mlp_out.0" in str(caught.value)


def test_a_store_of_first_positions_only_is_refused(tmp_path):
    writer = StoreWriter(tmp_path, {IN: 2}, 3, "float32")
    writer.put(0, {IN: torch.ones(3, 2)}, np.arange(3), np.zeros(3, int), np.zeros(3, int))
    with pytest.raises(MechstudyError, match="no row of mlp_in"):
        RowReader(writer.close(), IN, IN, 1)
