"""How well a batch mixes documents: rows of few documents resemble each other and represent little of the corpus."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechstudy.activations.store import Store


def mixing(documents_N: Int[Tensor, " n"], n_documents: int) -> float:
    """Entropy of the documents that N rows come from, over that of N rows drawn independently from all documents.

    1 is as mixed as the corpus allows, and the maximum; 0 is all rows of one document.

    Args:
        documents_N: the document of each row.
        n_documents: documents in the corpus, assumed to be equally long.
    """
    counts = torch.unique(documents_N, return_counts=True)[1].double()
    if not len(counts) or n_documents < 2:
        return 1.0
    share = counts / counts.sum()
    best = expected_entropy(len(documents_N), n_documents)
    return min(1.0, float(-(share * share.log()).sum()) / best) if best > 0 else 1.0


def expected_entropy(n_rows: int, n_documents: int) -> float:
    """Mean entropy (nats) of the documents of ``n_rows`` rows, each from one of ``n_documents`` with equal probability.

    log N - M / N * E[c log c], where c, the rows of a document, is binomial(N, 1 / M). It is well below log min(N, M)
    where N is about M, as such draws repeat documents.
    """
    p = 1.0 / n_documents
    if n_documents == 1 or not n_rows:
        return 0.0
    most = n_rows * p + 12 * math.sqrt(n_rows * p) + 30  # larger counts have no probability
    c = torch.arange(1, min(n_rows, int(most)) + 1, dtype=torch.float64)
    n = torch.tensor(float(n_rows), dtype=torch.float64)
    log_pmf = (n + 1).lgamma() - (c + 1).lgamma() - (n - c + 1).lgamma() + c * math.log(p) + (n - c) * math.log1p(-p)
    return max(0.0, math.log(n_rows) - n_documents / n_rows * float((log_pmf.exp() * c * c.log()).sum()))


def store_mixing(store: Store, batch_size: int, n_documents: int, *, n_batches: int = 4) -> float:
    """Mean `mixing` of some batches of a store: consecutive rows, without first positions."""
    size = min(batch_size, store.n_rows)
    values = []
    for first in np.linspace(0, store.n_rows - size, n_batches).astype(int).tolist():
        index = store.index(slice(first, first + size))
        values.append(mixing(torch.from_numpy(index.documents[index.positions > 0].copy()), n_documents))
    return float(np.mean(values))
