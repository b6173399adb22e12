"""Fixtures of several test modules; tables are as wide as for a user whose output is a pipe."""

from __future__ import annotations

import os
import sys

import pytest

from tests.support import shape_checks

shape_checks.install()

from tests.support.toy_model import write_model

# pytest imports readline, which sets these for child processes, and those of pytest-xdist are such.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)


_THREADS = os.environ.get("OMP_NUM_THREADS")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a study of a model that is nothing but a config and an empty weights file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MECHSTUDY_DEBUG", raising=False)
    write_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("Some text.\n")
    (tmp_path / "study.yaml").write_text(
        "name: tiny\n"
        "model: {source: 'path:model'}\n"
        "behaviours:\n"
        "  - {name: country_capital, n_train: 4, n_test: 4}\n"
        "corpus: {source: 'text:text.txt', tokens: 4096}\n"
        "capture: {layers: 2-4}\n"
        "dictionaries: {layers: 1-3, layers_per_pass: 2}\n"
        "compute: {device: cpu}\n"
    )
    return tmp_path


def pytest_configure(config):
    """Not in pyproject.toml, where pytest would import the class before the shape checks are installed."""
    config.addinivalue_line("filterwarnings", "ignore::mechstudy.dictionaries.training.health.HealthWarning")


def pytest_runtest_setup(item):
    """A test marked ``cuda`` needs a device, unless Triton interprets its kernels on the CPU."""
    if item.get_closest_marker("cuda") and not os.environ.get("TRITON_INTERPRET"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def pytest_runtest_call(item):
    _own_threads()


def pytest_runtest_teardown(item):
    _own_threads()


def _own_threads():
    """A study in this process sets torch's threads; left so, they would fight with other workers' for the cores."""
    torch = sys.modules.get("torch")
    if _THREADS and torch is not None:
        os.environ["OMP_NUM_THREADS"] = _THREADS
        if torch.get_num_threads() != int(_THREADS):
            torch.set_num_threads(int(_THREADS))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A tiny model with transcoders and prompt pairs."""
    from tests.support.api_world import tiny_world  # torch

    return tiny_world(tmp_path_factory.mktemp("world"))
