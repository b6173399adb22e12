"""Mixing: 1 for rows drawn anywhere, 0 for one document, and stores lie near 1."""

import math

import numpy as np
import pytest
import torch

from mechstudy.activations.mixing import expected_entropy, mixing
from mechstudy.activations.permutation import WindowedShuffle, run_length


def test_expected_entropy_by_hand():
    # two rows of two documents: the same one (entropy 0) or not (log 2), each half of the time
    assert expected_entropy(2, 2) == pytest.approx(math.log(2) / 2)
    # three rows of two documents: all the same in a quarter, else two to one
    assert expected_entropy(3, 2) == pytest.approx(0.75 * (math.log(3) - 2 / 3 * math.log(2)))
    assert expected_entropy(5, 1) == expected_entropy(1, 9) == expected_entropy(0, 9) == 0
    assert expected_entropy(10, 10**9) == pytest.approx(math.log(10), rel=1e-6)


def test_rows_drawn_anywhere_are_mixed_and_rows_of_one_document_are_not():
    draw = torch.Generator().manual_seed(0)
    for n_documents in (3, 300, 30_000):
        anywhere = torch.randint(n_documents, (2_048,), generator=draw)
        assert 0.99 < mixing(anywhere, n_documents) <= 1.0
        assert mixing(torch.full((2_048,), 7), n_documents) == 0.0
    assert mixing(torch.zeros(64, dtype=torch.long), 1) == 1.0, "nothing could be mixed better"
    assert mixing(torch.arange(64) // 16, 10_000) == pytest.approx(math.log(4) / math.log(64), rel=1e-2)
    assert mixing(torch.zeros(0, dtype=torch.long), 5) == 1.0


@pytest.mark.parametrize(("width", "context", "least"), [(576, 128, 0.97), (576, 1024, 0.91), (4096, 1024, 0.97)])
def test_batches_of_a_store_are_nearly_as_mixed_as_the_corpus(width, context, least):
    n_rows, batch = 200 * 1024, 2_048
    places = WindowedShuffle(n_rows, 0, run_length(2 * width))(np.arange(n_rows))
    documents = np.empty(n_rows, dtype=np.int64)
    documents[places] = np.arange(n_rows) // context
    for first in (0, n_rows // 2):
        assert least < mixing(torch.from_numpy(documents[first : first + batch]), n_rows // context) < 0.998
