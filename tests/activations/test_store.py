"""Stores: exact bytes, aligned rows, statistics, bounded memory, named damage."""

from __future__ import annotations

import errno
import os
import tracemalloc

import numpy as np
import pytest
import torch

from mechstudy.activations.config import site_bytes, store_bytes
from mechstudy.activations.permutation import WindowedShuffle
from mechstudy.activations.store import Store
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

IN, OUT = Site("mlp_in", 3), Site("mlp_out", 3)


def source_rows(first: int, last: int, width: int, scale: float = 1.0) -> torch.Tensor:
    """Row r is (r mod 251, r // 251, ...) so that every row tells its number, exactly in bf16."""
    r = torch.arange(first, last)
    return torch.stack([r % 251, r // 251] + [torch.ones_like(r)] * (width - 2), dim=1).float() * scale


def write(folder, n_rows, widths=(6, 4), dtype="bfloat16", seed=7, step=100, context=16, **kwargs):
    writer = StoreWriter(folder, {IN: widths[0], OUT: widths[1]}, n_rows, dtype, seed, **kwargs)
    for first in range(0, n_rows, step):
        last = min(n_rows, first + step)
        numbers = np.arange(first, last)
        rows = {IN: source_rows(first, last, widths[0]), OUT: source_rows(first, last, widths[1], 2.0)}
        writer.put(first, rows, numbers // context, numbers % context, numbers % 13)
    return writer.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_files_have_rows_times_width_times_item_size_bytes(tmp_path, dtype):
    store = write(tmp_path, 1001, dtype=dtype)
    item = {"bfloat16": 2, "float32": 4}[dtype]
    assert (tmp_path / "mlp_in.3.bin").stat().st_size == 1001 * 6 * item == site_bytes(1001, 6, dtype)
    assert (tmp_path / "mlp_out.3.bin").stat().st_size == 1001 * 4 * item
    files = [p for p in tmp_path.iterdir() if p.suffix == ".bin"]
    assert sum(p.stat().st_size for p in files) == store_bytes(1001, [6, 4], dtype)
    assert store.n_rows == 1001


@pytest.mark.parametrize("n_rows", [1, 15, 1001, 40_000])
def test_every_row_is_stored_once_and_all_files_stay_aligned(tmp_path, n_rows):
    store = write(tmp_path, n_rows, step=333)
    x, y, index = store.rows(IN), store.rows(OUT), store.index()
    numbers = (x[:, 0] + 251 * x[:, 1]).long().numpy()
    assert np.array_equal(np.sort(numbers), np.arange(n_rows))
    assert torch.equal(y[:, :2], 2 * x[:, :2])
    assert np.array_equal(index.documents, numbers // 16)
    assert np.array_equal(index.positions, numbers % 16)
    assert np.array_equal(index.tokens, numbers % 13)
    assert np.array_equal(store.places(numbers), np.arange(n_rows))
    np.testing.assert_allclose(store.norms(IN), x.norm(dim=1).numpy(), rtol=1e-6)


def test_the_order_depends_on_the_seed_and_on_nothing_else(tmp_path):
    a = write(tmp_path / "a", 500, step=100)
    b = write(tmp_path / "b", 500, step=7)
    c = write(tmp_path / "c", 500, seed=8)
    for file in ("mlp_in.3.bin", "index.bin", "mlp_out.3.norms.bin", "store.json", "statistics.safetensors"):
        assert (a.folder / file).read_bytes() == (b.folder / file).read_bytes(), file
    assert (a.folder / "mlp_in.3.bin").read_bytes() != (c.folder / "mlp_in.3.bin").read_bytes()


def test_without_shuffling_rows_stay_at_the_places_they_are_put(tmp_path):
    writer = StoreWriter(tmp_path, {IN: 2}, 4, "float32", shuffle=False)
    writer.put(np.array([3, 0]), {IN: torch.tensor([[3.0, 3.0], [0.0, 0.0]])}, [1, 0], [1, 0], [9, 9])
    writer.put(np.array([1, 2]), {IN: torch.tensor([[1.0, 1.0], [2.0, 2.0]])}, [0, 1], [1, 0], [9, 9])
    store = writer.close()
    assert store.rows(IN).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert store.rows(IN, slice(1, 4, 2)).tolist() == [[1, 1], [3, 3]]
    assert store.index(slice(2, 4)).documents.tolist() == [1, 1]


def test_statistics_are_those_of_the_stored_rows_without_first_positions(tmp_path):
    store = write(tmp_path, 3001)
    rows = store.rows(IN).double()[torch.from_numpy(store.index().positions > 0)]
    site = store.sites[IN]
    assert site.count == len(rows)
    torch.testing.assert_close(store.mean(IN), rows.mean(0), rtol=1e-12, atol=0)
    assert site.mean_squared_norm == pytest.approx(rows.square().sum(1).mean().item(), rel=1e-6)
    assert site.median_norm == pytest.approx(rows.norm(dim=1).median().item(), rel=2e-3)
    assert site.max_norm == pytest.approx(rows.norm(dim=1).max().item(), rel=1e-6)


def test_statistics_of_first_positions_alone_are_null(tmp_path):
    store = write(tmp_path, 5, context=1)
    assert (store.sites[IN].count, store.sites[IN].median_norm, store.sites[IN].mean_squared_norm) == (0, None, None)


def test_an_interrupted_writer_resumes_to_the_same_bytes(tmp_path):
    def writer(folder):
        made = StoreWriter(tmp_path / folder, {IN: 6, OUT: 4}, 9000, "bfloat16", 7)
        made.shuffle = WindowedShuffle(9000, 7, 2048, 2048)  # several windows, with few rows
        return made

    def put(to, first):
        numbers = np.arange(first, first + 100)
        rows = {IN: source_rows(first, first + 100, 6), OUT: source_rows(first, first + 100, 4, 2.0)}
        to.put(first, rows, numbers // 16, numbers % 16, numbers % 13)

    whole, killed = writer("whole"), writer("resumed")
    for first in range(0, 9000, 100):
        put(whole, first)
    for first in range(0, 5000, 100):
        put(killed, first)
        if first == 3000:
            tensors, state = killed.state()
    resumed = writer("resumed")
    resumed.restore(tensors, state)
    assert resumed.written_rows == 2048
    for first in range(2000, 9000, 100):
        put(resumed, first)
    expected, found = whole.close(), resumed.close()
    for file in sorted(p.name for p in expected.folder.iterdir()):
        assert (found.folder / file).read_bytes() == (expected.folder / file).read_bytes(), file


def test_peak_memory_does_not_grow_with_the_rows(tmp_path):
    def peak(n_rows):
        tracemalloc.start()
        writer = StoreWriter(tmp_path / str(n_rows), {IN: 576}, n_rows, "bfloat16")
        rows, zeros = torch.ones(2048, 576), np.zeros(2048, dtype=np.int32)
        for first in range(0, n_rows, 2048):
            writer.put(first, {IN: rows}, zeros, zeros + 1, zeros)
        writer.close()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(10 * 8192) < 1.2 * peak(8192) + 1_000_000


@pytest.mark.parametrize("name", ["mlp_out.3.bin", "index.bin", "mlp_in.3.norms.bin"])
def test_a_truncated_or_missing_file_is_named_on_opening(tmp_path, name):
    write(tmp_path, 100)
    os.truncate(tmp_path / name, 10)
    with pytest.raises(MechstudyError, match=rf"{name} is truncated") as caught:
        Store(tmp_path)
    assert "found:" in str(caught.value) and "10 bytes" in str(caught.value)
    (tmp_path / name).unlink()
    with pytest.raises(MechstudyError, match=rf"{name} is missing"):
        Store(tmp_path)


def test_a_folder_without_a_store_and_a_broken_description_are_refused(tmp_path):
    with pytest.raises(MechstudyError, match=r"store\.json is missing"):
        Store(tmp_path)
    (tmp_path / "store.json").write_text('{"schema": 1, "n_rows": ')
    with pytest.raises(MechstudyError, match="not readable"):
        Store(tmp_path)


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1000))
    with pytest.raises(MechstudyError, match="not enough room") as caught:
        StoreWriter(tmp_path, {IN: 6}, 1000, "bfloat16")
    assert "28,000 bytes" in str(caught.value)  # 1000 x (6 x 2 + 4 + 12)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_writing_is_told_in_plain_words(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path, {IN: 6}, 10, "bfloat16")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MechstudyError, match="not enough room"):
        writer.put(0, {IN: torch.ones(10, 6)}, range(10), range(10), range(10))
