"""Pickled dictionaries: what is in the file decides the message, which is in our own words."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.formats.pickles import read_state_dict
from tests.support.dictionary_files import draw

TENSORS = {"encoder.weight": draw(4, 3, seed=1), "b_dec": draw(3, seed=2)}
LEGACY = partial(torch.save, _use_new_zipfile_serialization=False)


def refusal(path: Path) -> MechstudyError:
    with pytest.raises(MechstudyError) as error:
        read_state_dict(path, "dictionary_learning's")
    for words in ("weights_only", "torch.load", "PyTorch 2.6", "Unpickler", "..."):
        assert words not in str(error.value)
    assert "safetensors" in str(error.value.fix) and "state_dict()" in str(error.value.fix)
    return error.value


@pytest.mark.parametrize("save", [torch.save, LEGACY], ids=["zip", "before zip files"])
def test_a_whole_module_needs_pickle_and_is_not_loaded(save: Callable[..., None], tmp_path):
    save(nn.Linear(3, 4), tmp_path / "ae.pt")
    error = refusal(tmp_path / "ae.pt")
    assert "is a pickle of more than tensors: loading it could run code, so it is not loaded" in error.what
    assert "torch.nn.modules.linear.Linear" in error.facts["names"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_names_what_it_would_call(protocol, tmp_path):
    (tmp_path / "ae.pt").write_bytes(pickle.dumps({"path": Path("x")}, protocol=protocol))
    assert "pathlib" in refusal(tmp_path / "ae.pt").facts["names"]


@pytest.mark.parametrize("save", [torch.save, LEGACY], ids=["zip", "before zip files"])
def test_tensors_alone_are_read_and_half_a_file_of_them_is_damaged(save: Callable[..., None], tmp_path):
    save(TENSORS, tmp_path / "ae.pt")
    assert set(read_state_dict(tmp_path / "ae.pt", "any")) == set(TENSORS)
    whole = (tmp_path / "ae.pt").read_bytes()
    (tmp_path / "ae.pt").write_bytes(whole[: len(whole) // 2])
    error = refusal(tmp_path / "ae.pt")
    assert "is damaged or truncated" in error.what and "copy or download it again" in str(error.fix)


@pytest.mark.parametrize(
    "content", [b"", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4"]
)
def test_what_torch_did_not_write_is_said_to_be_none_of_its_files(content, tmp_path):
    (tmp_path / "ae.pt").write_bytes(content)
    error = refusal(tmp_path / "ae.pt")
    assert "torch.save did not write it" in error.what and f"{len(content)} bytes" in error.facts["size"]
