"""A store that the quota has no room for is refused before a byte is written, with what would make it fit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mechstudy.activations.config import store_bytes
from mechstudy.activations.quota import Quota, changes_that_fit, parse_size, require_room
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site
from mechstudy.study.study import StorageConfig

SITES = {Site(kind, layer): 64 for layer in range(4) for kind in ("mlp_in", "mlp_out")}
N_ROWS = 1000
EACH = store_bytes(N_ROWS, [64, 64], "bfloat16")  # one layer's


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50 * 10**9),
        ("50 gb", 50 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("12B", 12),
        ("0.5kB", 500),
        ("3 MiB", 3 << 20),
    ],
)
def test_sizes_are_read_as_written(text, size):
    assert parse_size(text) == size
    assert StorageConfig(quota=text).quota_bytes == size


@pytest.mark.parametrize("text", ["", "50", "GB", "50GBs", "-5GB", "0GB", "5 iB", "1e3GB", "fifty"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(MechstudyError, match="is not a size") as caught:
        parse_size(text)
    assert "write 50GB" in str(caught.value)


def test_no_quota_is_no_limit(tmp_path):
    assert StorageConfig().quota_bytes is None
    require_room(tmp_path, SITES, N_ROWS, "bfloat16", None)


def test_the_refusal_says_needed_free_quota_and_what_fits(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "artifact").write_bytes(b"x" * 1000)
    quota = Quota(2 * EACH + 1000, tmp_path)
    with pytest.raises(MechstudyError, match=r"storage\.quota leaves not enough room") as caught:
        StoreWriter(tmp_path / "store", SITES, N_ROWS, "bfloat16", quota=quota)
    needed = store_bytes(N_ROWS, [64] * 8, "bfloat16")
    assert caught.value.facts["needed"] == f"{needed:,} bytes"
    assert caught.value.facts["quota"] == f"{2 * EACH + 1000:,} bytes (storage.quota), 1,000 used"
    assert "free" in caught.value.facts
    assert "layers_per_pass: 2 " in str(caught.value) and "source: stream" in str(caught.value)
    assert not (tmp_path / "store").exists(), "nothing is allocated"
    StoreWriter(tmp_path / "store", SITES, N_ROWS, "bfloat16", quota=Quota(needed + 1000, tmp_path))


def test_what_an_interrupted_capture_left_is_not_asked_for_again(tmp_path):
    quota = Quota(store_bytes(N_ROWS, SITES.values(), "bfloat16"), tmp_path)
    for _ in range(2):
        StoreWriter(tmp_path / "store", SITES, N_ROWS, "bfloat16", quota=quota)
    with pytest.raises(MechstudyError):
        StoreWriter(tmp_path / "second", SITES, N_ROWS, "bfloat16", quota=quota)


def test_every_change_that_is_offered_does_fit():
    for available in range(0, 5 * EACH, EACH // 7):
        for change in changes_that_fit(SITES, N_ROWS, "bfloat16", available):
            layers = 4
            if "layers_per_pass: " in change:
                layers = int(change.split("layers_per_pass: ")[1].split()[0])
            dtype = "int8" if "int8" in change else "bfloat16"
            if "stream" not in change:
                assert store_bytes(N_ROWS, [64] * 2 * layers, dtype) <= available, (change, available)
    assert changes_that_fit(SITES, N_ROWS, "bfloat16", 10) == ["dictionaries.source: stream (needs no disk)"]
    small = store_bytes(N_ROWS, [64] * 8, "int8")
    assert f"dictionaries.store_dtype: int8 (needs {small:,} bytes)" in changes_that_fit(
        SITES, N_ROWS, "bfloat16", small
    )


def test_prompts_are_not_told_of_dictionaries(tmp_path):
    with pytest.raises(MechstudyError) as caught:
        StoreWriter(tmp_path, SITES, N_ROWS, shuffle=False, quota=Quota(10, tmp_path))
    assert "dictionaries" not in str(caught.value) and "capture.layers" in str(caught.value)


def test_finished_work_is_told_from_unfinished(tmp_path):
    for name in ("a-1", "b-2.partial"):
        (tmp_path / "capture" / name).mkdir(parents=True)
        torch.save(torch.zeros(100), tmp_path / "capture" / name / "x.bin")
    quota = Quota(10**6, tmp_path)
    assert quota.used() == 2 * quota.used(finished=True) > 0
    assert quota.left() == 10**6 - quota.used()


@pytest.mark.process
def test_sizes_are_parsed_without_torch():
    code = "import sys, mechstudy.activations.quota; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
