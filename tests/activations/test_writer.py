"""Several processes write one store: the bytes are one process's, and what is missing is named."""

from __future__ import annotations

import multiprocessing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mechstudy.activations import permutation
from mechstudy.activations.statistics import in_order
from mechstudy.activations.store import Store
from mechstudy.activations.store_parts import Shares, read_parts
from mechstudy.activations.writer import StoreWriter, merge
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site
from tests.support import store_writers


def in_processes(target, folder: Path, n_writers: int, *args) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=target, args=(folder, rank, n_writers, *args)) for rank in range(n_writers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.process
def test_one_two_and_three_processes_write_the_same_bytes(tmp_path, windows):
    store_writers.write(tmp_path / "1", 0, 1, "int8")
    expected = contents(tmp_path / "1")
    assert {f"{site}.scales.bin" for site in store_writers.SITES} < expected.keys()
    for n in (2, 3):
        in_processes(store_writers.write, tmp_path / str(n), n, "int8")
        assert isinstance(merge(tmp_path / str(n)), Store)
        written = contents(tmp_path / str(n))
        assert written.keys() == expected.keys()
        assert [name for name in expected if written[name] != expected[name]] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parts_of_other_dtypes_make_the_same_bytes_too(tmp_path, windows, dtype):
    store_writers.write(tmp_path / "1", 0, 1, dtype)
    for rank in (2, 0, 3, 1):
        store_writers.write(tmp_path / "4", rank, 4, dtype, 97)
    merge(tmp_path / "4")
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


@pytest.mark.process
def test_captures_of_two_processes_are_those_of_one(tmp_path, windows):
    store_writers.capture(tmp_path / "1", 0, 1)
    in_processes(store_writers.capture, tmp_path / "2", 2)
    share = Shares(Store(tmp_path / "1").n_rows, 256).rows(0, 2)
    assert share[1] == 512 and share[1] % 6, "the share ends inside a document"
    merge(tmp_path / "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize(("n_rows", "window"), [(1, 8), (100, 8), (5003, 8), (1_000_003, 4096)])
@pytest.mark.parametrize("n_writers", [1, 2, 3, 7, 128, 200])
def test_shares_are_whole_chunks_that_cover_every_row_once(n_rows, window, n_writers):
    shares = Shares(n_rows, window)
    spans = [shares.rows(rank, n_writers) for rank in range(n_writers)]
    assert spans[0][0] == 0 and spans[-1][1] == n_rows
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    owners: dict[int, int] = {}
    for rank, (first, last) in enumerate(spans):
        for row in range(first, last, window):
            assert owners.setdefault(shares.chunk_of(row), rank) == rank, "a chunk has one writer"
    assert sorted(owners) == list(range(shares.n_chunks))
    if n_writers <= shares.n_chunks:
        assert all(first < last for first, last in spans)


def parts(folder: Path, n_writers: int = 3, ranks=None, run_bytes: int = store_writers.FEW) -> None:
    for rank in range(n_writers) if ranks is None else ranks:
        store_writers.write(folder, rank, n_writers, "bfloat16", 500, run_bytes)


@pytest.fixture
def windows(monkeypatch):
    """Restores what `store_writers` sets when it is called in this process."""
    monkeypatch.setattr(permutation, "RUN_BYTES", permutation.RUN_BYTES)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_more_writers_than_windows_leave_some_without_rows(tmp_path, windows):
    big = 1024  # two windows
    parts(tmp_path / "1", 2, run_bytes=big)
    parts(tmp_path / "2", 5, run_bytes=big)
    merge(tmp_path / "1"), merge(tmp_path / "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_missing_part_is_named_and_finished_ones_are_kept(tmp_path, windows):
    with pytest.raises(MechstudyError, match="no writer has finished"):
        merge(tmp_path)
    parts(tmp_path, ranks=[0, 2])
    with pytest.raises(MechstudyError, match="1 of 3 parts") as caught:
        merge(tmp_path)
    assert "part-1-of-3.safetensors" in str(caught.value)
    parts(tmp_path, ranks=[1])
    assert merge(tmp_path).n_rows == store_writers.N_ROWS
    assert not list(tmp_path.glob("part-*"))


def test_parts_of_another_number_of_writers_are_refused(tmp_path, windows):
    parts(tmp_path, 3)
    parts(tmp_path, 2)
    with pytest.raises(MechstudyError, match="parts of 2 and of 3 writers"):
        merge(tmp_path)


def test_overlapping_parts_and_parts_of_another_store_are_named(tmp_path, windows):
    parts(tmp_path, 2)
    first, second = (tmp_path / f"part-{rank}-of-2.safetensors" for rank in (0, 1))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(MechstudyError, match=r"part-1-of-2\.safetensors overlaps part-0-of-2\.safetensors"):
        merge(tmp_path)
    first.write_bytes(kept)
    with pytest.raises(MechstudyError, match=r"rows are missing before part-0-of-2\.safetensors"):
        merge(tmp_path)
    parts(tmp_path, 2, ranks=[0])
    parts(tmp_path, 2, ranks=[1], run_bytes=512)
    with pytest.raises(MechstudyError, match=r"part-1-of-2\.safetensors belongs to another") as caught:
        merge(tmp_path)
    assert "shuffle" in str(caught.value)


def test_a_damaged_part_is_refused(tmp_path, windows):
    parts(tmp_path, 2)
    file = tmp_path / "part-0-of-2.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(MechstudyError, match="damaged"):
        read_parts(tmp_path)


def test_a_writer_ignores_rows_of_others_and_resumes_inside_its_share(tmp_path, windows):
    permutation.RUN_BYTES = store_writers.FEW
    parts(tmp_path / "whole", 2)

    def writer():
        return StoreWriter(tmp_path / "again", store_writers.SITES, store_writers.N_ROWS, "bfloat16", 7, rank=1,
                           n_writers=2)  # fmt: skip

    def put_all(to, stop=store_writers.N_ROWS):
        start = to.written_rows // 500 * 500
        for first in range(start, stop, 500):
            last = min(store_writers.N_ROWS, first + 500)
            numbers = np.arange(first, last)
            found = {site: store_writers.rows(first, last, w) for site, w in store_writers.SITES.items()}
            to.put(first, found, numbers // 11, numbers % 11, numbers % 13)

    killed = writer()
    put_all(killed, 4500)
    saved = killed.state()
    assert killed.first_row < killed.written_rows < killed.last_row == store_writers.N_ROWS
    resumed = writer()
    resumed.restore(*saved)
    put_all(resumed)
    resumed.close_part()
    parts(tmp_path / "again", 2, ranks=[0])
    merge(tmp_path / "again"), merge(tmp_path / "whole")
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_the_order_of_adding_would_change_the_sums():
    """What the chunks are for: another grouping of the same bf16 rows ends with other bits."""
    x = store_writers.rows(0, 4096, 70).bfloat16().double().numpy()
    halves = [x[:1000].sum(0), x[1000:].sum(0)]
    quarters = [part.sum(0) for part in np.split(x, 4)]
    assert not np.array_equal(in_order(np.stack(halves)), in_order(np.stack(quarters)))


def test_rows_that_stay_where_they_are_put_have_one_writer(tmp_path):
    with pytest.raises(AssertionError, match="one writer"):
        StoreWriter(tmp_path, {Site("mlp_in", 0): 2}, 4, shuffle=False, n_writers=2)
