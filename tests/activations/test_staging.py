"""Rows are read from the node's own disk only where that helps, and the copy never outlives its use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from itertools import islice

import numpy as np
import pytest
import torch

from mechstudy.activations import staging
from mechstudy.activations.reader import RowReader
from mechstudy.activations.staging import file_system, is_network, staged
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

IN, OUT, OTHER = Site("mlp_in", 0), Site("mlp_out", 0), Site("mlp_out", 1)


@pytest.fixture(params=["bfloat16", "int8"])
def store(request, tmp_path):
    x = torch.randn(300, 9, generator=torch.Generator().manual_seed(0))
    writer = StoreWriter(tmp_path / "lustre" / "store", dict.fromkeys((IN, OUT, OTHER), 9), 300, request.param, seed=1)
    writer.put(0, {IN: x, OUT: -x, OTHER: x}, np.arange(300) // 8, np.arange(300) % 8, np.arange(300))
    return writer.close()


@pytest.fixture
def cluster(tmp_path):
    """A mounts table in which the store lies on Lustre, and the environment of a Slurm job with a local disk."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/lustre lustre rw 0 0\ngarbage\n"
        f"home:/y {tmp_path}/home nfs4 rw 0 0\n/dev/nvme0 {tmp_path}/with\\040blank xfs rw 0 0\n"
    )
    for name in ("local", "other", "home"):
        (tmp_path / name).mkdir()
    return {"mounts": mounts, "environment": {"SLURM_TMPDIR": f"{tmp_path}/local", "TMPDIR": f"{tmp_path}/other"}}


def test_the_innermost_mount_says_which_file_system_it_is(tmp_path, cluster):
    kinds = {name: file_system(tmp_path / name, cluster["mounts"]) for name in ("lustre/a/b", "local", "with blank/c")}
    assert kinds == {"lustre/a/b": "lustre", "local": "ext4", "with blank/c": "xfs"}
    assert file_system(tmp_path / "lustre2", cluster["mounts"]) == "ext4", "a name that only begins alike"
    assert file_system(tmp_path, tmp_path / "no such table") == ""


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "lustre", "gpfs", "wekafs", "beegfs", "ceph", "fuse.glusterfs", "fuse"]
)
def test_file_systems_of_clusters_are_network_ones(kind):
    assert is_network(kind)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "tmpfs", "overlay", "fuseblk", "zfs", "btrfs", "fuse.fuse-overlayfs", ""]
)
def test_disks_of_the_machine_are_not(kind):
    assert not is_network(kind)


def test_the_needed_files_alone_are_copied_read_and_removed(store, cluster, tmp_path):
    expected = [tuple(part.clone() for part in batch) for batch in islice(RowReader(store, IN, OUT, 7).batches(), 90)]
    said: list[str] = []
    with staged(store, [IN, OUT], say=said.append, **cluster) as local:
        [folder] = (tmp_path / "local").iterdir()
        names = ["mlp_in.0.bin", "mlp_out.0.bin"]
        names += ["mlp_in.0.scales.bin", "mlp_out.0.scales.bin"] if store.dtype == "int8" else []
        assert sorted(p.name for p in folder.iterdir()) == sorted(names)
        hidden = store.folder / "mlp_in.0.bin"
        hidden.rename(hidden.with_suffix(".hidden"))  # what is read is the copy
        for (x, y), (u, v) in zip(expected, RowReader(local, IN, OUT, 7, verify=True).batches(), strict=False):
            assert torch.equal(x, u) and torch.equal(y, v)
        hidden.with_suffix(".hidden").rename(hidden)
    assert not list((tmp_path / "local").iterdir())
    assert len(said) == 1 and str(folder) in said[0]


def test_the_copy_is_removed_after_an_error_too(store, cluster, tmp_path):
    with pytest.raises(RuntimeError), staged(store, [IN], **cluster):
        assert list((tmp_path / "local").iterdir())
        raise RuntimeError
    assert not list((tmp_path / "local").iterdir())


def test_a_file_damaged_on_its_way_is_refused_and_nothing_is_left(store, cluster, tmp_path):
    data = bytearray(store.sites[OUT].file.read_bytes())
    data[100] ^= 1
    store.sites[OUT].file.write_bytes(data)
    with pytest.raises(MechstudyError, match=r"mlp_out\.0\.bin is damaged"), staged(store, [IN, OUT], **cluster):
        pass
    assert not list((tmp_path / "local").iterdir())


def copies(tmp_path, store, cluster, **how) -> int:
    """How many folders there are while the store is staged."""
    with staged(store, [IN, OUT], **{**cluster, **how}):
        return sum(len(list((tmp_path / name).iterdir())) for name in ("local", "other", "home"))


def test_auto_stages_from_a_network_to_a_local_disk_and_else_not(store, cluster, tmp_path, monkeypatch):
    assert copies(tmp_path, store, cluster) == 1
    assert copies(tmp_path, store, cluster, environment={"TMPDIR": f"{tmp_path}/other"}) == 1
    assert copies(tmp_path, store, cluster, stage="off") == 0
    assert copies(tmp_path, store, cluster, epochs=0.9) == 0, "rows that are read once are read where they are"
    assert copies(tmp_path, store, cluster, environment={}) == 0
    assert copies(tmp_path, store, cluster, environment={"TMPDIR": f"{tmp_path}/home"}) == 0, "network too"
    assert copies(tmp_path, store, cluster, environment={"TMPDIR": f"{tmp_path}/nowhere"}) == 0
    local = tmp_path / "all_local"
    local.write_text("/dev/sda / ext4 rw 0 0\n")
    assert copies(tmp_path, store, cluster, mounts=local) == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
    said: list[str] = []
    assert copies(tmp_path, store, cluster, say=said.append) == 0
    assert "no room" in said[0]


def test_a_named_folder_is_used_whatever_the_file_systems_are(store, cluster, tmp_path, monkeypatch):
    environment = {"ME": "other"}
    assert copies(tmp_path, store, cluster, stage=f"{tmp_path}/${{ME}}", environment=environment, epochs=0.5) == 1
    with staged(store, [IN], f"{tmp_path}/new/deep"):
        assert len(list((tmp_path / "new" / "deep").iterdir())) == 1
    monkeypatch.setattr(staging, "SPARE", 1 << 60)
    with pytest.raises(MechstudyError, match="not enough room"), staged(store, [IN], str(tmp_path)):
        pass


@pytest.mark.parametrize("written", ["scratch", "/scratch/$NOT_SET", "$NOT_SET"])
def test_a_folder_that_is_no_whole_path_is_refused(store, written):
    with (
        pytest.raises(MechstudyError, match="is not a folder's whole path"),
        staged(store, [IN], written, environment={}),
    ):
        pass


@pytest.mark.process
def test_only_copies_of_killed_processes_are_removed(store, cluster, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    prefix = f"mechstudy-stage-{socket.gethostname()}"
    dead, alive, elsewhere = (
        tmp_path / "local" / name
        for name in (f"{prefix}-{ended.pid}-x", f"{prefix}-{os.getpid()}-x", f"mechstudy-stage-another-{ended.pid}-x")
    )
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    with staged(store, [IN], **cluster):
        pass
    assert not dead.exists() and alive.exists() and elsewhere.exists()


def test_stores_without_checksums_are_staged_by_size(store, cluster, tmp_path):
    store._files = {}
    assert copies(tmp_path, store, cluster) == 1
