"""Findings about rows before the first training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechstudy.activations.multi_site_batches import StreamBatches
from mechstudy.activations.reader import RowReader
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.row_health import store_findings, stream_findings
from mechstudy.dictionaries.training.train_many import View
from mechstudy.models.sites import Site
from tests.support.tiny import tiny_model

SITE = Site("mlp_out", 0)
SAE = DictionaryConfig(kind="sae", d_sae=16, k=2)


def source(folder, n_sinks: int) -> RowReader:
    """320 rows of 40 documents of 8 tokens; the first ``n_sinks`` rows that are no document's first are long."""
    rows = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
    numbers = np.arange(320)
    rows[(numbers % 8 > 0).nonzero()[0][:n_sinks]] *= 1e4
    writer = StoreWriter(folder, {SITE: 8}, 320, "float32", seed=0)
    writer.put(0, {SITE: rows}, numbers // 8, numbers % 8, numbers)
    return RowReader(writer.close(), SITE, SITE, 64)


@pytest.mark.parametrize(("n_sinks", "n_documents", "whats"), [(0, 40, []), (30, 40, ["sinks"]), (0, 10**6, [])])
def test_sinks_of_a_store_are_a_finding(tmp_path, n_sinks, n_documents, whats):
    reader = source(tmp_path, n_sinks)
    findings, mixing = store_findings(
        reader.store, reader, n_documents, SAE, TrainConfig(batch_size=64, health={"mixing": "off"}), NullProgress()
    )
    assert [finding["what"] for finding in findings] == whats
    assert 0 < mixing <= 1


def test_findings_stop_a_training_that_says_stop(tmp_path):
    reader = source(tmp_path, 30)
    with pytest.raises(MechstudyError, match="are sinks"):
        store_findings(reader.store, reader, 40, SAE, TrainConfig(batch_size=64, health="stop"), NullProgress())


@pytest.mark.parametrize(("window_rows", "whats"), [(28, ["mixing"]), (28 * 40, [])])
def test_small_windows_of_a_stream_are_a_finding(window_rows, whats):
    tokens = torch.randint(1, 250, (40, 15), generator=torch.Generator().manual_seed(0))
    stream = StreamBatches(tiny_model("llama", dtype="float32"), tokens, [SITE], 28, window_rows=window_rows)
    findings = stream_findings(
        stream, View(stream, str(SITE), str(SITE)), SAE, TrainConfig(batch_size=28), NullProgress()
    )
    assert [finding["what"] for finding in findings] == whats
