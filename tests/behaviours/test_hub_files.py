"""Prompts of a Hugging Face dataset, from a local cache and from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mechstudy.behaviours.hub_files import hub_files, is_hub
from mechstudy.behaviours.user import PromptSource, read_prompts
from mechstudy.core.errors import MechstudyError
from mechstudy.models import hub
from tests.support.fake_tokenizer import FakeTokenizer

MIB = ["README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts empty files into the cache, and lets the hub be out of reach."""

    def offline(*_: object, **__: object) -> Any:
        raise MechstudyError("the hub cannot be reached")

    def put(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    monkeypatch.setattr(hub, "cached_dataset", lambda *_, **__: tmp_path)
    monkeypatch.setattr(hub, "dataset_files", offline)
    return put


def files(name: str, folder: Path) -> list[tuple[str, str | None]]:
    return [(part.path.relative_to(folder).as_posix(), part.split) for part in hub_files(name)]


def test_a_dataset_is_named_by_its_prefix():
    assert is_hub("hf:mib-bench/ioi") and not is_hub("prompts.jsonl")


def test_train_and_test_files_are_the_splits(cache):
    folder = cache(*MIB)
    assert files("hf:mib-bench/ioi", folder) == [(MIB[1], "train"), (MIB[2], "test")]
    folder = cache("data/validation.parquet")
    assert files("hf:mib-bench/ioi", folder) == [(MIB[1], "train"), (MIB[2], "test")]


def test_a_named_split_is_divided_by_groups(cache):
    assert files("hf:mib-bench/ioi:test", cache(*MIB)) == [(MIB[2], None)]


def test_a_configuration_is_a_folder(cache):
    folder = cache("2_choices/train.parquet", "2_choices/test.parquet", "4_choices/train.parquet")
    assert files("hf:mib-bench/mcqa:2_choices", folder) == [
        ("2_choices/train.parquet", "train"),
        ("2_choices/test.parquet", "test"),
    ]
    assert files("hf:mib-bench/mcqa:4_choices:train", folder) == [("4_choices/train.parquet", None)]


def test_files_without_a_split_are_divided_by_groups(cache):
    assert files("hf:a/b", cache("greater_than_data.csv", "dataset_infos.json")) == [("greater_than_data.csv", None)]


@pytest.mark.parametrize("name", ["hf:ioi", "hf:a/b:c:d:e", "hf:", "hf:../x/y"])
def test_a_name_that_is_none_is_refused(name: str):
    with pytest.raises(MechstudyError, match="is not a dataset"):
        hub_files(name)


@pytest.mark.parametrize(
    ("name", "message", "fact"),
    [
        ("hf:a/b", "it has several configurations", "x, y"),
        ("hf:a/b:z", "there is no configuration 'z'", "x, y"),
        ("hf:a/b:x:test", "there is no x test", "train"),
    ],
)
def test_what_a_dataset_lacks_is_named_with_what_it_has(cache, monkeypatch, name: str, message: str, fact: str):
    cache()
    monkeypatch.setattr(hub, "dataset_files", lambda *_, **__: {"x/train.csv": 1, "y/train.csv": 1})
    with pytest.raises(MechstudyError, match=message) as error:
        hub_files(name)
    assert fact in ", ".join(error.value.facts.values())


def test_files_are_fetched_unless_they_are_large(tmp_path, monkeypatch):
    fetched: list[list[str]] = []
    monkeypatch.setattr(hub, "cached_dataset", lambda *_, **__: None)
    monkeypatch.setattr(hub, "dataset_files", lambda *_, **__: {"train.csv": 5, "test.csv": 5, "other.bin": 1 << 40})
    monkeypatch.setattr(hub, "download_dataset", lambda _repo, names, **__: fetched.append(names) or tmp_path)
    assert files("hf:a/b", tmp_path) == [("train.csv", "train"), ("test.csv", "test")]
    assert fetched == [["train.csv", "test.csv"]]
    monkeypatch.setattr(hub, "dataset_files", lambda *_, **__: {"train.csv": 1 << 31})
    with pytest.raises(MechstudyError, match="its files are 2"):
        hub_files("hf:a/b")


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a dataset of which train.csv and test.csv were fetched, without a network."""
    commit = "a" * 40
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    names = ("README.md", "train.csv", "test.csv", "validation.csv", "x/train.csv")
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "b" * 40} for name in names}}
    written = {f"snapshots/{commit}/{name}": "" for name in ("train.csv", "test.csv")}
    for place, text in (written | {"refs/main": commit, f"trees/{commit}.json": json.dumps(listing)}).items():
        file = tmp_path / "datasets--acme--set" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "datasets--acme--set" / "snapshots" / commit


def test_files_that_were_fetched_alone_are_read_without_a_network(fetched):
    assert files("hf:acme/set", fetched) == [("train.csv", "train"), ("test.csv", "test")]
    assert files("hf:acme/set:train", fetched) == [("train.csv", None)]


@pytest.mark.parametrize("name", ["hf:acme/set:validation", "hf:acme/set:x"])
def test_files_that_were_not_fetched_are_not_replaced_by_others(fetched, name: str):
    with pytest.raises(MechstudyError, match="the hub"):
        hub_files(name)


def test_prompts_of_a_dataset_are_in_the_splits_of_its_files(cache):
    folder = cache()
    for split, n in (("train", 3), ("test", 2)):
        rows = [
            {
                "prompt": f"{split} {i} near",
                "label": 10 + i,
                "operand1": i,
                "operand2": 1,
                "random_counterfactual": {"prompt": f"{split} {i} beside", "label": 50 + i},
            }
            for i in range(n)
        ]
        (folder / "data").mkdir(exist_ok=True)
        pl.DataFrame(rows).write_parquet(folder / "data" / f"{split}-0.parquet")
    source = PromptSource.named("hf:mib-bench/arithmetic", folder, {"format": "mib-arithmetic"})
    pairs = read_prompts(source, FakeTokenizer(bos=False)).pairs
    assert [pair.id for pair in pairs["train"]] == ["line-0001", "line-0002", "line-0003"]
    assert [(pair.id, pair.clean, pair.answer) for pair in pairs["test"]] == [
        ("line-0004", "test 0 near", " 10"),
        ("line-0005", "test 1 near", " 11"),
    ]
    assert [pair.group for pair in pairs["train"][:1] + pairs["test"][:1]] == ["0 1 (train)", "0 1 (test)"]
