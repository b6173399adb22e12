"""A flipped byte anywhere in a store is found, and named by file and block."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mechstudy.activations import checksums, writer
from mechstudy.activations.checksums import BlockCheck, FileSum, sum_of
from mechstudy.activations.multi_site_batches import StoreBatches
from mechstudy.activations.reader import RowReader
from mechstudy.activations.store import Store
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

IN, OUT = Site("mlp_in", 0), Site("mlp_out", 0)
BLOCK = 1000
N_ROWS = 600


@pytest.fixture(params=["bfloat16", "int8"])
def store(request, tmp_path, monkeypatch):
    """600 rows of 40 and 70 coordinates under blocks of 1,000 bytes; first positions and a few sinks are left out."""
    monkeypatch.setattr(writer, "BLOCK", BLOCK)
    monkeypatch.setattr(writer, "sums_of", lambda files: checksums.sums_of(files, BLOCK))
    x = torch.randn(N_ROWS, 110, generator=torch.Generator().manual_seed(0))
    x[5::50] *= 100
    made = StoreWriter(tmp_path, {IN: 40, OUT: 70}, N_ROWS, request.param, seed=1)
    made.put(0, {IN: x[:, :40], OUT: x[:, 40:]}, np.arange(N_ROWS) // 8, np.arange(N_ROWS) % 8, np.arange(N_ROWS))
    return made.close()


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_store_json_holds_every_files_sha256(store):
    meta = json.loads((store.folder / "store.json").read_text())
    files = {p.name: p.read_bytes() for p in store.folder.iterdir() if p.name != "store.json"}
    assert {name: found["sha256"] for name, found in meta["files"].items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    sums = store.checksums([store.folder / "index.bin"])[store.folder / "index.bin"]
    data = files["index.bin"]
    assert sums.crc32 == tuple(zlib.crc32(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK))


def test_a_sound_store_verifies(store):
    store.verify()


@pytest.mark.parametrize("name", ["mlp_in.0.bin", "mlp_out.0.norms.bin", "index.bin"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_byte_is_named_by_file_and_block(store, name, place):
    offset = int(place * ((store.folder / name).stat().st_size - 1))
    flip(store.folder / name, offset)
    with pytest.raises(MechstudyError, match=rf"{name} is damaged") as caught:
        Store(store.folder).verify()
    assert caught.value.facts["block"].startswith(f"{offset // BLOCK:,}, bytes")


@pytest.mark.parametrize("name", ["statistics.safetensors", "checksums.safetensors"])
def test_a_flipped_byte_of_the_small_files_is_found_too(store, name):
    flip(store.folder / name, (store.folder / name).stat().st_size - 3)
    with pytest.raises(MechstudyError, match=rf"{name} is damaged"):
        Store(store.folder).verify()


def test_a_store_without_checksums_says_so(store):
    meta = json.loads((store.folder / "store.json").read_text())
    del meta["files"], meta["checksums"]
    (store.folder / "store.json").write_text(json.dumps(meta | {"schema": 1}))
    with pytest.raises(MechstudyError, match="no checksums"):
        Store(store.folder).verify()
    with pytest.raises(MechstudyError, match="no checksums"):
        RowReader(Store(store.folder), IN, OUT, 10, verify=True)


@pytest.mark.parametrize("start", [0, 3, 17])
def test_verified_batches_are_the_same_batches(store, start):
    plain, checked = (RowReader(store, IN, OUT, 10, verify=verify).batches(start) for verify in (False, True))
    for (x, y), (u, v) in islice(zip(plain, checked, strict=True), 150):
        assert torch.equal(x, u) and torch.equal(y, v)


@pytest.mark.parametrize("start", [0, 17])
def test_a_flipped_byte_stops_the_first_epoch_wherever_it_is(store, start):
    names = ["mlp_in.0.bin", "mlp_out.0.bin", *(["mlp_in.0.scales.bin"] if store.dtype == "int8" else [])]
    for name in names:
        sound = (store.folder / name).read_bytes()
        for offset in (0, len(sound) // 3, len(sound) - 1):
            flip(store.folder / name, offset)
            batches = RowReader(store, IN, OUT, 10, verify=True).batches(start)
            with pytest.raises(MechstudyError, match=rf"{name} is damaged") as caught:
                for _ in islice(batches, 2 * N_ROWS // 10):
                    pass
            assert caught.value.facts["block"].startswith(f"{offset // BLOCK}, bytes")
            (store.folder / name).write_bytes(sound)


def test_one_pass_over_many_sites_verifies_too(store):
    flip(store.folder / "mlp_out.0.bin", 4321)
    with pytest.raises(MechstudyError, match=r"mlp_out\.0\.bin is damaged"):
        for _ in islice(StoreBatches(store, [IN, OUT], 10, verify=True).batches(), 100):
            pass


def test_each_block_is_compared_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10)
    check = BlockCheck(path, sum_of(path, 100))
    data, file = path.read_bytes(), os.open(path, os.O_RDONLY)
    for offset in (1234, 0, 2500, 700):  # out of order, and in pieces
        check.feed(file, offset, [data[offset : offset + 7], data[offset + 7 : offset + 350]])
    assert not check.done
    check.feed(file, 0, [data])
    assert check.done
    check.feed(file, 0, [b"wrong"])
    os.close(file)


def test_a_file_cut_short_differs(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a" * 250)
    expected = sum_of(path, 100)
    assert expected == FileSum(250, hashlib.sha256(b"a" * 250).hexdigest(), expected.crc32, 100)
    path.write_bytes(b"a" * 210)
    with pytest.raises(MechstudyError, match="file is damaged") as caught:
        checksums.check_files([(path, expected)])
    assert caught.value.facts["block"].startswith("2,")
