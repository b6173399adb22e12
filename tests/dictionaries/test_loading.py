"""Loading dictionaries of any kind, alone and as a set."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.loading import load_dictionaries, load_dictionary
from tests.support.dictionary_files import trained_clt
from tests.support.dictionary_worlds import dictionary_of, random_dictionary


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_load_dictionary_returns_what_the_files_hold(tmp_path, dtype):
    random_dictionary("skip_transcoder").save(tmp_path / "one")
    trained_clt(3).save(tmp_path / "clt")
    one, clt = (load_dictionary(tmp_path / name, dtype=dtype) for name in ("one", "clt"))
    assert isinstance(one, Dictionary) and one.cfg == random_dictionary("skip_transcoder").cfg
    assert isinstance(clt, CrossLayerTranscoder) and clt.n_sites == 3
    assert one.W_enc.dtype == clt.W_enc.dtype == (dtype or torch.float64)


def test_a_set_is_loaded_by_layer_from_a_folder_or_a_list(tmp_path):
    for layer in (11, 2):
        dictionary_of(torch.eye(4) * layer, site=f"mlp_out.{layer}").save(tmp_path / f"layer_{layer}")
    for places in (tmp_path, str(tmp_path), [tmp_path / "layer_11", str(tmp_path / "layer_2")]):
        loaded = load_dictionaries(places)
        assert list(loaded) == [2, 11]
        assert all(float(dictionary.W_dec[0, 0]) == layer for layer, dictionary in loaded.items())


def test_two_dictionaries_of_one_layer_are_refused(tmp_path):
    dictionary_of(torch.eye(4)).save(tmp_path / "a")
    with pytest.raises(MechstudyError, match="two dictionaries read layer 1"):
        load_dictionaries([tmp_path / "a", tmp_path / "a"])


@pytest.mark.process
def test_importing_the_room_does_not_import_torch():
    code = "import sys; from mechstudy import dictionaries as d, features; d.TrainConfig; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
