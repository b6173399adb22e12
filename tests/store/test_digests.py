"""Digests of whole files: remembered while a file is unchanged, and never beyond that."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.store import digests
from mechstudy.store.digests import bytes_to_read, file_sha256

SIZE = 3 << 20


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that is large enough to be remembered, and old enough."""
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_IN_PROCESS", {})
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    path = tmp_path / "weights"
    path.write_bytes(b"a" * SIZE)
    return path


def reads(monkeypatch) -> list[int]:
    count = []
    inner = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: count.append(1) or inner(*a))
    return count


def test_a_large_file_is_read_once_by_all_processes(file, monkeypatch):
    count = reads(monkeypatch)
    assert bytes_to_read([file]) == SIZE
    first = file_sha256(file)
    monkeypatch.setattr(digests, "_IN_PROCESS", {})  # as in another process
    assert file_sha256(file) == first == hashlib.sha256(b"a" * SIZE).hexdigest()
    assert bytes_to_read([file]) == 0 and len(count) == 1


def test_an_edit_that_keeps_size_and_time_is_seen(file):
    before, status = file_sha256(file), file.stat()
    with file.open("r+b") as f:
        f.seek(SIZE // 2)
        f.write(b"b")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns
    assert file_sha256(file) != before


def test_a_file_that_was_just_written_is_not_remembered(file, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED", 2.0)
    count = reads(monkeypatch)
    file.write_bytes(b"c" * SIZE)
    assert file_sha256(file) == file_sha256(file) and len(count) == 2
    assert time.time() - file.stat().st_mtime < 60


def test_a_link_has_the_digest_of_its_file_and_follows_it(file, tmp_path):
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(b"d" * SIZE)
    link.symlink_to(file)
    assert file_sha256(link) == file_sha256(file)
    link.unlink()
    link.symlink_to(other)
    assert file_sha256(link) == file_sha256(other) != file_sha256(file)


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(file, tmp_path, monkeypatch):
    (tmp_path / "nowhere").write_text("a file")
    monkeypatch.setenv("MECHSTUDY_CACHE", str(tmp_path / "nowhere"))
    assert file_sha256(file) == hashlib.sha256(b"a" * SIZE).hexdigest()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MechstudyError, match="cannot be read: No such file") as error:
        file_sha256(tmp_path / "gone")
    assert error.value.where == str(tmp_path / "gone")
