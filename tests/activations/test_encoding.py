"""8-bit rows: what they lose is bounded, measured, and said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mechstudy.activations.config import scale_bytes, site_bytes, store_bytes
from mechstudy.activations.encoding import decoded, encode
from mechstudy.activations.store import Store
from mechstudy.activations.writer import StoreWriter
from mechstudy.models.sites import Site

SITE = Site("resid_post", 4)


def rows(n=500, width=150, dtype=torch.float32):
    """Rows around a mean, with two coordinates hundreds of times the rest, as residual streams have."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(0)) + 3.0
    x[:, [7, 149]] = x[:, [7, 149]] * 5 + 800
    return x.to(dtype)


def write(folder, x, positions=None, shuffle=True, dtype="int8"):
    n = len(x)
    writer = StoreWriter(folder, {SITE: x.shape[1]}, n, dtype, seed=3, shuffle=shuffle)
    writer.put(0, {SITE: x}, np.arange(n), np.ones(n, int) if positions is None else positions, np.arange(n))
    return writer.close()


@pytest.mark.parametrize("width", [1, 63, 64, 65, 128, 150])
def test_a_number_is_off_by_at_most_half_a_level_of_its_block(width):
    x = rows(width=200)[:, -width:]
    found = decoded(encode(x, "int8"))
    for first in range(0, width, 64):
        block = x[:, first : first + 64]
        level = block.abs().amax(1, keepdim=True) / 127
        assert torch.all((found[:, first : first + 64] - block).abs() <= level * 0.5001)


def test_an_outlier_is_coarse_only_to_its_own_block():
    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(0))
    x[:, 5] += 1000
    error = (decoded(encode(x, "int8")) - x).square().mean(0)
    assert error[64:].max() < 1e-3 < 0.1 < error[6:64].min()


def test_zeros_come_back_as_zeros_and_signs_are_symmetric():
    x = rows(20)
    x[3] = 0
    x[4, :64] = 0
    found = decoded(encode(x, "int8"))
    assert torch.equal(found[3], x[3]) and torch.equal(found[4, :64], x[4, :64])
    assert torch.equal(decoded(encode(-x, "int8")), -found)


@pytest.mark.parametrize("smallest", [1e-44, 1e-38])
def test_the_smallest_numbers_do_not_become_infinite(smallest):
    found = decoded(encode(torch.full((2, 64), smallest), "int8"))
    assert torch.isfinite(found).all() and found.abs().max() <= 2 * smallest


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so_and_only_in_its_block(broken):
    x = rows(4)
    x[2, 70] = broken
    finite = torch.isfinite(decoded(encode(x, "int8")))
    assert not finite[2, 64:128].any()
    finite[2, 64:128] = True
    assert finite.all()


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_int8_store_reads_back_as_encoded_in_its_exact_bytes(tmp_path, shuffle):
    x = rows()
    store = write(tmp_path, x, shuffle=shuffle)
    assert torch.equal(store.rows(SITE)[torch.from_numpy(store.places(np.arange(500)))], decoded(encode(x, "int8")))
    np.testing.assert_allclose(store.norms(SITE), store.rows(SITE).norm(dim=1).numpy(), rtol=1e-6)
    assert torch.equal(store.rows(SITE, slice(10, 90, 3)), store.rows(SITE)[10:90:3])
    assert (tmp_path / "resid_post.4.bin").stat().st_size == 500 * 150 == site_bytes(500, 150, "int8")
    assert (tmp_path / "resid_post.4.scales.bin").stat().st_size == 500 * 3 * 4 == scale_bytes(500, 150, "int8")
    assert sum(p.stat().st_size for p in tmp_path.glob("*.bin")) == store_bytes(500, [150], "int8")


def test_rows_of_both_dtypes_go_to_the_same_places(tmp_path):
    a, b = write(tmp_path / "a", rows()), write(tmp_path / "b", rows(), dtype="bfloat16")
    assert np.array_equal(a.index().tokens, b.index().tokens)


def test_quantisation_fvu_excludes_first_positions_and_sinks(tmp_path):
    x = rows(dtype=torch.bfloat16)
    x[100] *= 300  # a sink
    positions = np.ones(500, int)
    positions[:50] = 0
    x[:50] *= 7  # first positions
    store = write(tmp_path, x, positions)
    kept = torch.cat([x[50:100], x[101:]]).double()
    error = decoded(encode(x, "int8")).double()[torch.cat([torch.arange(50, 100), torch.arange(101, 500)])] - kept
    expected = float(error.square().sum() / (kept - kept.mean(0)).square().sum())
    assert store.sites[SITE].quantisation_fvu == pytest.approx(expected, rel=1e-9)
    assert 1 < expected < 4, "these outliers are too heavy for 8 bits, and the number says so"
    assert Store(tmp_path).sites[SITE].quantisation_fvu == store.sites[SITE].quantisation_fvu


def test_other_dtypes_and_equal_rows_have_no_measured_cost(tmp_path):
    assert write(tmp_path / "a", rows(), dtype="float32").sites[SITE].quantisation_fvu is None
    assert write(tmp_path / "b", torch.ones(9, 4)).sites[SITE].quantisation_fvu is None


def test_stores_of_schema_1_are_still_read(tmp_path):
    x = rows()
    store = write(tmp_path, x, dtype="float32")
    meta = json.loads((tmp_path / "store.json").read_text())
    old = {"schema": 1} | {k: meta[k] for k in ("n_rows", "seed", "dtype", "byte_order", "shuffle", "index", "sites")}
    for site in old["sites"].values():
        del site["statistics"]["not_finite"]
    (tmp_path / "store.json").write_text(json.dumps(old))
    assert torch.equal(Store(tmp_path).rows(SITE), store.rows(SITE))
