"""Trains a dictionary.

The normalisation is measured on the first batches and the weights are initialised. Each step computes pre-activations,
active features, loss and gradients (for an SAE without the decoder's parallel part), clips, and applies Adam (for an
SAE with unit decoder rows). At the end the normalisation is folded into the weights, and every architecture but TopK
becomes the JumpReLU it is at inference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.core.seeds import torch_generator
from mechstudy.core.signals import Stopped, requested
from mechstudy.dictionaries.architectures import architecture_of
from mechstudy.dictionaries.architectures.cross_layer import encode
from mechstudy.dictionaries.config import RECONSTRUCTING, DictionaryConfig, TrainConfig
from mechstudy.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.sizes import statistics_rows
from mechstudy.dictionaries.stored import AnyPath
from mechstudy.dictionaries.training.data_parallel import ProcessGroup, current_process_group
from mechstudy.dictionaries.training.finish import finished
from mechstudy.dictionaries.training.gradients import StepOutput
from mechstudy.dictionaries.training.health import Finding, Health, warn
from mechstudy.dictionaries.training.initialise import Moments, initial_weights, measure
from mechstudy.dictionaries.training.rows import IterableRows, cannot_resume, rows_of
from mechstudy.dictionaries.training.scalars import ScalarLog
from mechstudy.dictionaries.training.state import TrainState
from mechstudy.dictionaries.training.step import train_step
from mechstudy.models.precision import faster_dtype

_NOT_IN_WEIGHTS = ("log_every", "checkpoint_every", "tensorboard", "health")  # change no byte of the weights

Batch = TypeVar("Batch")


@runtime_checkable
class RowSource(Protocol):
    """Rows of one dictionary's sites; `activations.reader.RowReader` is one.

    `batches(start)` yields (x [N, d_in], y [N, d_out]) for step start, start + 1, ..., without end, fully determined by
    the source and `start`. A source that drops sinks has `max_input_norm` and `max_output_norm`, the largest norms it
    keeps.
    """

    d_in: int
    d_out: int

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) from a step on."""


def train(
    config: DictionaryConfig,
    recipe: TrainConfig,
    rows: Any,
    *,
    site_in: str = "",
    site_out: str = "",
    out: AnyPath | None = None,
    checkpoint: AnyPath | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Dictionary | CrossLayerTranscoder:
    """Train one dictionary; several from one pass over the rows: `train_many`.

    If torch.distributed is initialised (torchrun), every process takes its share of each batch and all end with the
    same dictionary, that of one process with the same batches; the first one logs and saves.

    Args:
        config: the architecture.
        recipe: how to train it.
        rows: [N, d] as a tensor or NumPy array; a pair (inputs, targets); any iterable of such batches (see
            `rows.rows_of`); or a `RowSource` such as a store's reader. Of a crosscoder or clt [N, n_sites, d].
        site_in: where the inputs were captured, kept in the file; "activations" if empty, "mlp_in" for a clt.
        site_out: where the targets were captured; if empty `site_in` for an SAE, "mlp_out" for a clt.
        out: folder for scalars.jsonl and tensorboard/; None: nothing is logged.
        checkpoint: file to save to every `checkpoint_every` steps, and to resume from. A resumed training ends with the
            bytes of an uninterrupted one on the same machine. If a stop is requested (`core.signals`) it saves after
            the current step and raises `Stopped`. Not for generators, which cannot be resumed.
        progress: receives progress and health findings; without one, findings are Python warnings (`HealthWarning`).
        device: where to train.

    Returns:
        A `CrossLayerTranscoder` for ``kind: clt``, else a `Dictionary`.

    Raises:
        MechstudyError: too few rows, no rows, or none of the targets a transcoder needs; impossible k or widths; NaN or
            infinity in the activations (names step and row); a diverged loss; a checkpoint that is damaged or of
            another configuration.
    """
    source = rows_of(
        rows, recipe.batch_size, recipe.seed, config.n_sites, needs_targets=config.kind not in RECONSTRUCTING
    )
    if checkpoint is not None and isinstance(source, IterableRows) and source.once:
        raise cannot_resume()
    site_in = site_in or ("mlp_in" if config.kind == "clt" else "activations")
    if not site_out:
        site_out = site_in if config.kind in RECONSTRUCTING else f"target of {site_in}"
        site_out = "mlp_out" if config.kind == "clt" else site_out
    training = Training(config, recipe, source, site_in=site_in, site_out=site_out, out=out, checkpoint=checkpoint,
                        device=device)  # fmt: skip
    training.begin(source.batches(), progress)
    run_trainings([training], source.batches, [lambda batch: batch], label="train", progress=progress)
    return training.finish()


def run_trainings(
    trainings: Sequence[Training],
    batches: Callable[[int], Iterator[Batch]],
    select: Sequence[Callable[[Batch], tuple[Tensor, Tensor]]],
    *,
    label: str,
    progress: Progress | None,
) -> None:
    """Give every batch to each training that is not beyond it, until all are finished.

    Args:
        trainings: begun or resumed; those further ahead wait for the others.
        batches: the batches from a step on.
        select: each training's (x, y) of a batch.
        label: of the progress bar.
        progress: receives it.

    Raises:
        MechstudyError: as `Training.take`.
        Stopped: a stop was requested; every training has saved itself after the same step.
    """
    first = min(training.step for training in trainings)
    total = max(training.train_cfg.steps for training in trainings)
    with ExitStack() as stack:
        for training in trainings:
            stack.enter_context(training)
        bar = stack.enter_context((progress or NullProgress()).bar(label, total, "steps", done=first, stops=False))
        for step, batch in enumerate(batches(first) if first < total else (), first):
            last = trainings[0].stop_requested()
            scalars: dict[str, Any] = {}
            for training, rows in zip(trainings, select, strict=True):
                if training.step == step and not training.finished:
                    scalars = training.take(*rows(batch), save=last)
            bar.advance(1, **(scalars if len(trainings) == 1 else {}))
            if all(training.finished for training in trainings):
                break
            if last:
                what = trainings[0].site_out if len(trainings) == 1 else f"{len(trainings)} dictionaries"
                raise Stopped(f"{what} after step {step + 1}")


class Training:
    """One dictionary in training: `begin`, then `take` a batch at a time, then `finish`.

    `train` drives one, `train_many` several with the batches of one pass.
    """

    def __init__(
        self,
        cfg: DictionaryConfig,
        train_cfg: TrainConfig,
        source: RowSource,
        *,
        site_in: str,
        site_out: str,
        out: AnyPath | None,
        checkpoint: AnyPath | None = None,
        device: str = "cpu",
    ) -> None:
        self.cfg, self.train_cfg, self.source = cfg, train_cfg, source
        self.site_in, self.site_out = str(site_in), str(site_out)
        self.out = None if out is None else Path(out)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.device = device
        self.n_features = cfg.width(source.d_in)
        _check_sites(cfg, source, self.site_in, self.site_out)
        self.fingerprint = _fingerprint(cfg, train_cfg, source, self.n_features, self.site_in, self.site_out)
        self.health = Health(cfg, train_cfg)
        self.group: ProcessGroup = current_process_group()
        self._progress: Progress | None = None
        self._state: TrainState | None = None
        self._log: ScalarLog | None = None

    @property
    def state(self) -> TrainState:
        """Weights, optimizer and counters; there is none before `begin`."""
        assert self._state is not None, "begin() comes first"
        return self._state

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.state.step >= self.train_cfg.steps

    def begin(self, first_batches: Iterable[tuple[Tensor, Tensor]], progress: Progress | None) -> None:
        """Resume from the checkpoint if there is one, else initialise from statistics of the first batches.

        Health findings go to `progress`; without one they are Python warnings (`HealthWarning`).
        """
        if torch.device(self.device).type == "cuda":
            torch.set_float32_matmul_precision("high" if self.train_cfg.tf32 else "highest")
        if self.checkpoint is not None:
            dead_after = self.train_cfg.resolved_dead_after()
            self._state = TrainState.restore(self.checkpoint, self.fingerprint, self.device, dead_after)
        self._progress = progress
        if self._state is not None:
            if progress is not None:
                progress.log(f"resumed at step {self.step:,} of {self.train_cfg.steps:,}")
            self.health.restore(self._state.health)
            return
        rows = (self._usable(x, y, step)[:2] for step, (x, y) in enumerate(first_batches))
        self._state, moments = _start(
            self.cfg, self.train_cfg, self.source.d_in, self.source.d_out, rows, self.device, self.group
        )  # fmt: skip
        self._report(self.health.data(moments.mean_to_spread))

    def __enter__(self) -> Training:
        self._begun = time.monotonic()
        if self.out is not None and self.group.rank == 0:
            self._log = ScalarLog(self.out, tensorboard=self.train_cfg.tensorboard, start_step=self.step)
            self._begun -= self._log.seconds_before
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()

    def stop_requested(self) -> bool:
        """Whether a stop was requested in any process: all of them stop after the same step."""
        return self.group.any(requested()) if self.group.size > 1 else requested()

    def take(self, x: Tensor, y: Tensor, *, save: bool = False) -> dict[str, Any]:
        """One step on raw rows; returns its scalars if this step logs any. ``save``: write the checkpoint after it.

        Raises:
            MechstudyError: rows of another width or with NaN or infinity, a diverged loss, or a health finding whose
                action is "stop".
        """
        cfg, train_cfg, state = self.cfg, self.train_cfg, self.state
        x, y, left_out = self._usable(x, y, state.step)
        state.left_out += left_out
        x, y = state.normalisation.apply(x, y)
        mine = self.group.share(len(x))
        x, y = x[mine], (x[mine] if y is x else y[mine])
        output = train_step(cfg, train_cfg, state, x, y, self.group)
        step, last = state.step, self.finished
        scalars: dict[str, Any] = {}
        if step % train_cfg.log_every == 0 or last or step == 1:
            values = _scalars(state, output, y, self.group, time.monotonic() - self._begun)
            if self._log is not None:
                self._log.write(step, values)
            scalars = {name: values[name] for name in ("loss", "fvu", "l0")}
            self._report(self.health.step(step, values))
        saves = self.checkpoint is not None and (save or step % train_cfg.checkpoint_every == 0)
        if saves or last:
            _assert_finite(state, output)
        if self.checkpoint is not None and (saves or last):
            state.health = self.health.state()
            if self.group.rank == 0:
                state.save(self.checkpoint, self.fingerprint)
            self.group.wait()
        return scalars

    def finish(self) -> Dictionary | CrossLayerTranscoder:
        """The trained dictionary, on raw activations.

        Raises:
            MechstudyError: the source ended early.
        """
        if not self.finished:
            raise MechstudyError(
                f"the activations ended at step {self.step} of {self.train_cfg.steps}",
                fix="a source that repeats its rows",
            )
        dictionary = finished(self.cfg, self.train_cfg, self.state, self.source, self.site_in, self.site_out)
        if self.health.findings:
            dictionary.metadata["health"] = self.health.as_json()
        return dictionary

    def _report(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            warned = finding.action == "warned"
            text = f"{self.site_out}, step {finding.step:,}: {finding.text}"
            text += f"; fix: {finding.fix}" if warned else ""
            if self._progress is not None:
                self._progress.log(text)
            elif warned and self.group.rank == 0:
                warn(text)

    def _usable(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor, int]:
        """(x, y, n): finite rows on the device as float32, and the number of rows that are not finite."""
        same = y is x
        for name, tensor, width in (("input", x, self.source.d_in), ("target", y, self.source.d_out)):
            if tensor.ndim != 2 or tensor.shape[1] != width:
                raise MechstudyError(
                    f"{name} rows have shape {list(tensor.shape)}, but {width} columns were promised",
                    where=f"step {step}",
                )
        x = x.to(self.device, torch.float32)
        y = x if same else y.to(self.device, torch.float32)
        if torch.isfinite(x.sum()) and (same or torch.isfinite(y.sum())):
            return x, y, 0
        finite = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)
        bad = (~finite).nonzero().squeeze(1)
        if not len(bad):  # the sum overflowed, the rows are finite
            return x, y, 0
        if self.train_cfg.non_finite == "refuse" or len(bad) == len(x):
            name = "input" if not torch.isfinite(x[bad[0]]).all() else "target"
            raise MechstudyError(
                f"the {name} activations hold NaN or infinity",
                where=f"{self.site_out}: step {step}, row {int(bad[0])}",
                facts={"rows affected": f"{len(bad)} of {len(x)} in this batch"},
                fix="capture again in float32 or bfloat16 (float16 overflows at 65,504), or training.non_finite: skip",
            )
        x = x[finite]
        return x, x if same else y[finite], len(bad)


def _check_sites(cfg: DictionaryConfig, source: RowSource, site_in: str, site_out: str) -> None:
    if cfg.kind not in RECONSTRUCTING:
        return
    if source.d_in != source.d_out:
        raise MechstudyError(
            "an SAE reconstructs its own input, but the target has another width",
            facts={"input": f"{site_in}, {source.d_in} wide", "target": f"{site_out}, {source.d_out} wide"},
            fix="the same site for both, or kind: transcoder",
        )
    if site_in != site_out:
        raise MechstudyError(
            "an SAE reconstructs its own input, but the target is another site",
            facts={"input": site_in, "target": site_out},
            fix="the same site for both, or kind: transcoder",
        )


def _fingerprint(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    source: RowSource,
    n_features: int,
    site_in: str,
    site_out: str,
) -> dict[str, Any]:
    recipe = {key: value for key, value in train_cfg.canonical().items() if key not in _NOT_IN_WEIGHTS}
    widths = {"d_in": source.d_in, "d_out": source.d_out, "d_sae": n_features}
    return {**cfg.canonical(), **recipe, **widths, "site_in": site_in, "site_out": site_out}


def _start(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    d_in: int,
    d_out: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str,
    group: ProcessGroup,
) -> tuple[TrainState, Moments]:
    n_features, with_skip = cfg.width(d_in), cfg.kind == "skip_transcoder"
    n_rows = min(statistics_rows(d_in, with_skip=with_skip), train_cfg.steps * train_cfg.batch_size)
    moments = measure(batches, n_rows=n_rows, with_cross=with_skip, n_sites=cfg.n_sites)
    generator = torch_generator(train_cfg.seed, "dictionary", "initial weights")
    weights = initial_weights(cfg.kind, n_features, d_in, d_out, moments, generator, cfg.n_sites)
    pre = moments.sample.new_empty(len(moments.sample), n_features)
    encode(moments.sample, weights.enc, weights.b_enc, cfg.n_sites if cfg.kind == "clt" else 1, pre)
    weights.b_enc, weights.extra = architecture_of(cfg).start(pre)
    precision: str = train_cfg.precision
    if precision == "auto":  # timed, so processes may disagree
        fast = faster_dtype(d_in, n_features, device, train_cfg.batch_size)
        precision = "bfloat16" if group.first(fast == "bfloat16") else "float32"
    return TrainState.fresh(weights, moments.normalisation, precision, device), moments


def _assert_finite(state: TrainState, output: StepOutput) -> None:
    if not torch.isfinite(output.loss) or not torch.isfinite(state.weights.dec.sum()):
        raise MechstudyError(
            f"training diverged: the loss is {float(output.loss):.3g} at step {state.step}",
            facts={"learning rate": f"{state.optimizer.lr:.3g}"},
            fix="a smaller lr, or a longer warm-up",
        )


def _scalars(state: TrainState, output: StepOutput, y: Tensor, group: ProcessGroup, seconds: float) -> dict[str, Any]:
    n_rows, total, square = group.total(len(y)), y.sum(0, dtype=torch.float64), y.double().square().sum()
    group.sum(total, square)
    variance = float(square - total.square().sum() / n_rows)
    values: dict[str, Any] = {
        "loss": float(output.loss),
        "fvu": float(output.loss) * n_rows * y.shape[1] / max(1e-30, variance),
        "l0": output.active / n_rows,
        "lr": float(state.optimizer.lr),
        "dead_share": (0 if state.dead is None else len(state.dead)) / len(state.weights.b_enc),
        "rows": state.rows,
        "seconds": round(seconds, 3),
    }
    if output.aux_loss is not None:
        values["aux_loss"] = float(output.aux_loss)
    if output.penalty is not None:
        values["penalty"] = float(output.penalty)
    if state.threshold is not None:
        values["threshold"] = state.threshold * state.normalisation.scale_out
    return values
