"""Every class that dictionary_learning loads, read without its pickles being executed. Nothing is written for it."""

from __future__ import annotations

import pytest
import torch

from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats.dictionary_learning import CLASSES
from tests.peers.exchange import D, F, K, assert_computes, write_rows

pytestmark = pytest.mark.peers


def test_every_class_that_it_loads_is_read(dictionary_learning):
    assert dictionary_learning("classes") == sorted(CLASSES)


@pytest.mark.parametrize("threshold", [-1.0, 0.8])
@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_computes_here_what_it_computes_there(name, threshold, dictionary_learning, tmp_path):
    x = write_rows(tmp_path, torch.float32)
    dictionary_learning("make", folder=tmp_path, name=name, d=D, width=F, k=K, threshold=threshold)
    dictionary = Dictionary.load(tmp_path)
    assert_computes(dictionary, x, tmp_path)
    assert dictionary.cfg.site_in == "resid_post.8" and dictionary.metadata["model_name"] == "some/model"
