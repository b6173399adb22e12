"""Findings about the rows of a training before its first step."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from mechstudy.activations.mixing import store_mixing
from mechstudy.activations.multi_site_batches import StreamBatches
from mechstudy.activations.reader import RowReader
from mechstudy.activations.store import Store
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.health import Finding, Health
from mechstudy.dictionaries.training.train_many import View


def store_findings(
    store: Store,
    source: RowReader,
    n_documents: int,
    architecture: DictionaryConfig,
    recipe: TrainConfig,
    progress: Progress,
) -> tuple[list[dict[str, Any]], float]:
    """Findings about the rows of a store as `source` reads them, and how well its batches mix documents.

    Args:
        n_documents: documents that the store's rows come from.

    Raises:
        MechstudyError: a finding whose action in `recipe.health` is "stop".
    """
    watch, mixing = Health(architecture, recipe), store_mixing(store, recipe.batch_size, n_documents)
    files = [store.sites[site] for site in (source.site_in, source.site_out)]
    longest = max((f.max_norm / f.median_norm for f in files if f.max_norm and f.median_norm), default=None)
    n_rows, limited = source.sink_rows + source.rows_per_epoch, source.max_input_norm is not None
    _log(watch.sinks(source.sink_rows, n_rows, longest_to_median=longest, limited=limited), source.site_out, progress)
    _log(watch.mixing(mixing), source.site_out, progress)
    return watch.as_json(), mixing


def stream_findings(
    source: StreamBatches, view: View, architecture: DictionaryConfig, recipe: TrainConfig, progress: Progress
) -> list[dict[str, Any]]:
    """Findings about one dictionary's rows in the first window of a streamed pass.

    Raises:
        MechstudyError: a finding whose action in `recipe.health` is "stop".
    """
    watch, n_rows, n_kept = Health(architecture, recipe), 0, 0
    for batch in islice(source.batches(), source.steps_per_window):
        n_rows += source.batch_size
        n_kept += len(view.select(batch)[0])
    _log(watch.sinks(n_rows - n_kept, n_rows), view.site_out, progress)
    _log(watch.mixing(source.mixing()), view.site_out, progress)
    return watch.as_json()


def _log(findings: Iterable[Finding], site: object, progress: Progress) -> None:
    for finding in findings:
        progress.log(f"{site}: {finding.text}; fix: {finding.fix}")
