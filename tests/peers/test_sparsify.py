"""sparsify's folders, both ways."""

from __future__ import annotations

import itertools

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import sparsify as ours
from tests.peers.exchange import D, F, K, assert_computes, write_rows

pytestmark = pytest.mark.peers

FORMS = list(itertools.product((False, True), (False, True), ("float32", "float64")))


@pytest.mark.parametrize("transcode,skip,dtype", FORMS)
def test_sparsify_and_we_compute_the_same_from_either_ones_files(transcode, skip, dtype, sparsify, tmp_path):
    folder = tmp_path / "layers.3.mlp"
    x = write_rows(folder, getattr(torch, dtype))
    options = {"num_latents": F, "k": K, "transcode": transcode, "skip_connection": skip}
    sparsify("make", folder=folder, d=D, options=options, dtype=dtype)
    dictionary = Dictionary.load(folder)
    assert_computes(dictionary, x, folder)
    assert (dictionary.cfg.site_in, dictionary.cfg.site_out) == ("mlp_in.3" if transcode else "mlp_out.3", "mlp_out.3")
    again = tmp_path / "again"
    ours.write(dictionary, again)
    write_rows(again, getattr(torch, dtype))
    sparsify("load", folder=again)
    assert_computes(dictionary, x, again)


def test_the_width_may_be_an_expansion_factor(sparsify, tmp_path):
    x = write_rows(tmp_path, torch.float32)
    sparsify("make", folder=tmp_path, d=D, options={"expansion_factor": 3, "k": K}, dtype="float32")
    assert_computes(Dictionary.load(tmp_path), x, tmp_path)


def test_groupmax_is_refused(sparsify, tmp_path):
    write_rows(tmp_path, torch.float32)
    options = {"num_latents": F, "k": 4, "activation": "groupmax"}
    sparsify("make", folder=tmp_path, d=D, options=options, dtype="float32")
    with pytest.raises(MechstudyError, match="groupmax"):
        Dictionary.load(tmp_path)
