"""Positions and capture choices, as written in a study."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mechstudy.activations.config import (
    CaptureConfig,
    Positions,
    PromptCaptureConfig,
    store_bytes,
)
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

NAMES = {"subject": 1, "verb": 4}


@pytest.mark.parametrize(
    ("written", "length", "indices"),
    [
        ("all", 3, (0, 1, 2)),
        ("last-2", 6, (4, 5)),
        ("last-9", 6, (0, 1, 2, 3, 4, 5)),
        ("last", 6, (5,)),
        ("subject", 6, (1,)),
        (["verb", "subject", "last-2"], 6, (1, 4, 5)),
    ],
)
def test_positions_resolve_to_sorted_unique_token_indices(written, length, indices):
    positions = Positions.parse(written)
    named = {name: index for name, index in NAMES.items() if index < length}
    assert positions.resolve(named, length) == indices
    assert positions.count(length, named) == len(indices)
    assert positions.count(length) >= len(indices)


def test_a_position_called_last_is_the_behaviours():
    assert Positions.parse("last").resolve({"last": 2}, 6) == (2,)


def test_an_unknown_position_is_refused_with_the_nearest_name():
    with pytest.raises(MechstudyError, match="'subjct'") as caught:
        Positions.parse("subjct").resolve(NAMES, 6)
    assert "did you mean 'subject'" in str(caught.value)


def test_a_position_outside_of_its_prompt_is_refused():
    with pytest.raises(MechstudyError, match="token 4 of a prompt of 3"):
        Positions.parse("verb").resolve(NAMES, 3)


@pytest.mark.parametrize("written", [[], "", "last-0", [3], {"last": 5}, 7])
def test_positions_that_name_nothing_are_refused(written):
    with pytest.raises(MechstudyError):
        PromptCaptureConfig(positions=written)


@pytest.mark.parametrize("fields", [{"versions": []}, {"splits": ["test", "test"]}, {"versions": ["both"]}])
def test_splits_and_versions_are_named_once_each(fields):
    with pytest.raises(MechstudyError):
        PromptCaptureConfig(**fields)


@pytest.mark.parametrize("written", ["last-5", "all", ["subject", "last-2"]])
def test_positions_survive_the_canonical_form(written):
    config = PromptCaptureConfig(positions=written)
    assert config.canonical()["positions"] == written
    assert PromptCaptureConfig.model_validate(config.canonical()) == config


def test_sites_are_listed_by_layer_then_as_written():
    config = CaptureConfig(sites=["mlp_in", "mlp_out"], layers="1-2")
    assert config.resolve_sites(3) == (
        Site("mlp_in", 1),
        Site("mlp_out", 1),
        Site("mlp_in", 2),
        Site("mlp_out", 2),
    )
    assert len(CaptureConfig().resolve_sites(5)) == 10
    with pytest.raises(MechstudyError, match="layer 2 does not exist"):
        config.resolve_sites(2)


@pytest.mark.parametrize(
    "fields", [{"layers": "5-2"}, {"layers": "x"}, {"layers": []}, {"sites": []}, {"sites": ["mlp_in"] * 2}]
)
def test_unreadable_layers_and_sites_are_refused_without_a_model(fields):
    with pytest.raises(MechstudyError):
        CaptureConfig(**fields)


def test_store_size_by_hand():
    # 10 rows of two sites, 3 and 5 wide: (3 + 5) x 2 bytes of numbers, two norms of 4, an index of 12
    assert store_bytes(10, [3, 5], "bfloat16") == 10 * (16 + 8 + 12)
    assert store_bytes(10, [3, 5], "float32") == 10 * (32 + 8 + 12)


@pytest.mark.process
def test_the_configuration_imports_no_torch():
    code = "import sys, mechstudy.activations.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
