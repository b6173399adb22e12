"""Corpus sources, positions and capture choices, as written in a study."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mechstudy.activations.config import (
    CaptureConfig,
    CorpusConfig,
    Positions,
    PromptCaptureConfig,
    Source,
    store_bytes,
)
from mechstudy.core.errors import MechstudyError
from mechstudy.models.sites import Site

NAMES = {"subject": 1, "verb": 4}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("bundled", Source("bundled")),
        ("text:a:b.txt", Source("text", "a:b.txt")),
        ("hf:org/set", Source("hf", "org/set")),
        ("hf:org/set:en", Source("hf", "org/set", config="en")),
        ("hf:org/set:test", Source("hf", "org/set", split="test")),
        ("hf:org/set:en:validation@v1.0", Source("hf", "org/set", "en", "validation", "v1.0")),
        ("hf:org/set::odd@abc", Source("hf", "org/set", None, "odd", "abc")),
    ],
)
def test_sources_are_read_as_documented(text, source):
    assert Source.parse(text) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bundeld", "did you mean 'bundled'"),
        ("csv:a.csv", "not a corpus source"),
        ("jsonl:", "write jsonl:PATH"),
        ("bundled:x", "takes nothing after it"),
        ("hf::train", "not a dataset"),
        ("hf:org/set:train[:10%]", "slices its split"),
    ],
)
def test_other_sources_are_refused_with_a_hint(text, message):
    with pytest.raises(MechstudyError) as caught:
        Source.parse(text)
    assert message in str(caught.value)
    with pytest.raises(MechstudyError):
        CorpusConfig(source=text, tokens=10)


def test_tokens_are_rounded_up_to_whole_rows():
    config = CorpusConfig(tokens=129, held_out_tokens=128, context=128)
    assert (config.train_rows, config.held_out_rows, config.n_rows) == (2, 1, 3)


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
def test_unreadable_layers_and_sites_are_refused_before_a_model_is_known(fields):
    with pytest.raises(MechstudyError):
        CaptureConfig(**fields)


def test_store_size_by_hand():
    # 10 rows of two sites, 3 and 5 wide: (3 + 5) x 2 bytes of numbers, two norms of 4, an index of 12
    assert store_bytes(10, [3, 5], "bfloat16") == 10 * (16 + 8 + 12)
    assert store_bytes(10, [3, 5], "float32") == 10 * (32 + 8 + 12)


def test_the_configuration_imports_no_torch():
    code = "import sys, mechstudy.activations.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
