"""A finished study of toy units, and a copy of it that a test may damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.storage_world import copy_of, finished_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return finished_study(tmp_path_factory.mktemp("toy") / "here")


@pytest.fixture
def study(finished, tmp_path, monkeypatch):
    return copy_of(finished, tmp_path / "here", monkeypatch)
