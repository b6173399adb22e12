"""Stores on Lustre are striped before they are written; what goes wrong with that is a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechstudy.activations.striping import stripe

GIB = 1 << 30


@pytest.fixture
def lustre(tmp_path, monkeypatch):
    """A mounts table in which <tmp>/lustre is Lustre, and an ``lfs`` that writes down what it was asked for."""
    mounts, programs = tmp_path / "mounts", tmp_path / "bin"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/lustre lustre rw 0 0\n")
    programs.mkdir()
    (tmp_path / "lustre").mkdir()
    fake_lfs(programs, f'echo "$@" >> {tmp_path}/asked')
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return tmp_path


def fake_lfs(folder: Path, script: str) -> None:
    (folder / "lfs").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "lfs").chmod(0o755)


def asked(folder: Path) -> str:
    file = folder / "asked"
    return file.read_text() if file.exists() else ""


@pytest.mark.parametrize(
    ("setting", "size", "count"),
    [("auto", 8 * GIB + 1, 2), ("auto", 8 * GIB, None), ("auto", 900 * GIB, 16), (3, 10, 3), ("off", 90 * GIB, None)],
)
def test_auto_takes_a_server_for_each_8_gib_and_a_number_is_a_number(lustre, setting, size, count):
    store, said = lustre / "lustre" / "run" / "train", []
    assert stripe(store, size, setting, say=said.append, mounts=lustre / "mounts") == count
    assert asked(lustre) == (f"setstripe -c {count} {store}\n" if count else "")
    assert bool(said) == bool(count) and store.is_dir() == bool(count)


def test_elsewhere_and_where_files_are_already_nothing_is_done(lustre):
    mounts = lustre / "mounts"
    assert stripe(lustre / "home" / "train", 90 * GIB, 4, mounts=mounts) is None
    begun = lustre / "lustre" / "begun"
    begun.mkdir()
    (begun / "mlp_in.0.bin").write_bytes(b"rows")
    assert stripe(begun, 90 * GIB, 4, mounts=mounts) is None
    assert asked(lustre) == ""


@pytest.mark.parametrize("script", ["echo 'stripe count 4 exceeds the pool' >&2; exit 22", "exit 5"])
def test_a_failure_is_told_with_its_reason_and_is_no_error(lustre, script):
    fake_lfs(lustre / "bin", script)
    said = []
    assert stripe(lustre / "lustre" / "train", 1, 4, say=said.append, mounts=lustre / "mounts") is None
    assert len(said) == 1 and "warning" in said[0] and "lfs setstripe -c 4" in said[0]
    assert ("exceeds the pool" if "pool" in script else "exit status 5") in said[0]


def test_without_lfs_nothing_is_done(lustre, monkeypatch):
    (lustre / "bin" / "lfs").unlink()
    monkeypatch.setenv("PATH", str(lustre / "bin"))
    assert stripe(lustre / "lustre" / "train", 1, 4, mounts=lustre / "mounts") is None
