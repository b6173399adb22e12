"""What is wrong with the rows of a training, before its first step."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from mechstudy.core.progress import Progress

if TYPE_CHECKING:
    from mechstudy.activations.multi_site_batches import StreamPass
    from mechstudy.activations.reader import RowReader
    from mechstudy.activations.store import Store
    from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
    from mechstudy.dictionaries.training.health import Finding
    from mechstudy.dictionaries.training.train_many import View


def of_store(
    store: Store,
    source: RowReader,
    n_documents: int,
    architecture: DictionaryConfig,
    training: TrainConfig,
    progress: Progress,
) -> tuple[list[dict[str, Any]], float]:
    """Findings about a store's rows as they are read, and how well its batches mix documents.

    Raises:
        MechstudyError: something is wrong, and the study says to stop.
    """
    from mechstudy.activations.mixing import store_mixing
    from mechstudy.dictionaries.training.health import Health

    watch, mixed = Health(architecture, training), store_mixing(store, training.batch_size, n_documents)
    files = [store.sites[site] for site in (source.site_in, source.site_out)]
    longest = max((f.max_norm / f.median_norm for f in files if f.max_norm and f.median_norm), default=None)
    n_rows, limited = source.sink_rows + source.rows_per_epoch, source.max_input_norm is not None
    _tell(watch.sinks(source.sink_rows, n_rows, longest_to_median=longest, limited=limited), source.site_out, progress)
    _tell(watch.mixing(mixed), source.site_out, progress)
    return watch.as_json(), mixed


def of_stream(
    source: StreamPass, view: View, architecture: DictionaryConfig, training: TrainConfig, progress: Progress
) -> list[dict[str, Any]]:
    """Findings about one dictionary's rows in the first window of a pass.

    Raises:
        MechstudyError: something is wrong, and the study says to stop.
    """
    from mechstudy.dictionaries.training.health import Health

    watch, n_rows, n_kept = Health(architecture, training), 0, 0
    for batch in islice(source.batches(), source.steps_per_window):
        n_rows += source.batch_size
        n_kept += len(view.select(batch)[0])
    _tell(watch.sinks(n_rows - n_kept, n_rows), view.site_out, progress)
    _tell(watch.mixing(source.mixing()), view.site_out, progress)
    return watch.as_json()


def _tell(findings: Iterable[Finding], site: Any, progress: Progress) -> None:
    for finding in findings:
        progress.log(f"{site}: {finding.text}; fix: {finding.fix}")
