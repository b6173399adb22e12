"""Train one dictionary.

The steps: measure the normalisation on the first batches, initialise, then per step: pre-activations, active
features, loss and gradients, (SAE: drop the decoder's parallel gradient), clip, Adam, (SAE: unit rows). At the end
the normalisation is folded into the weights, and every architecture but TopK becomes the JumpReLU it is at inference.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

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
from mechstudy.dictionaries.paths import AnyPath
from mechstudy.dictionaries.training.data_parallel import Team, current_team
from mechstudy.dictionaries.training.finish import finished
from mechstudy.dictionaries.training.gradients import StepOutput
from mechstudy.dictionaries.training.health import Finding, Health, warn
from mechstudy.dictionaries.training.initialise import Moments, initial_weights, measure, statistics_rows
from mechstudy.dictionaries.training.rows import IterableRows, cannot_resume, rows_of
from mechstudy.dictionaries.training.scalars import ScalarLog
from mechstudy.dictionaries.training.state import TrainState
from mechstudy.dictionaries.training.step import train_step
from mechstudy.models.precision import faster_dtype

_HOW_ONLY = ("log_every", "checkpoint_every", "tensorboard", "health")  # of TrainConfig: change no byte of the weights


class RowSource(Protocol):
    """Where rows come from; `activations.reader.RowReader` is one.

    `batches(start)` yields (x [N, d_in], y [N, d_out]) for step start, start+1, ... for ever, fully determined by
    the source and `start`. A source that drops sinks has `max_input_norm` and `max_output_norm`, the largest
    norms it lets pass.
    """

    d_in: int
    d_out: int

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]: ...


def train(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    source: Any,
    *,
    site_in: str = "activations",
    site_out: str = "",
    out: AnyPath | None = None,
    checkpoint: AnyPath | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Dictionary:
    """Train a dictionary (a clt by `train_cross_layer`).

    Where torch.distributed is initialised (torchrun), every process takes its share of each batch and all of them end
    with the same dictionary, that of one process with the same batches; the first one logs and saves.

    With `checkpoint`, the run saves itself there every `checkpoint_every` steps and goes on from an existing
    file; a resumed run ends with the same bytes as an uninterrupted one on the same machine. Where a stop is asked
    for (`core.stopping`), it saves itself after the step it is at and raises `Stopped`.

    Args:
        source: a `RowSource` such as a store's reader; or rows [N, d] (tensors or NumPy arrays), a pair (inputs,
            targets), or any iterable of such batches (see `rows.rows_of`). Of a crosscoder [N, n_sites, d].
        site_in, site_out: what the rows are, kept in the file; site_out is site_in for an SAE if not given.
        out: folder that receives scalars.jsonl and tensorboard/; None: nothing is logged.
        checkpoint: a file; not with a generator, which cannot be resumed.
        progress: told how far it is and what looks ill; without one a `health.HealthWarning` tells the latter.

    Raises:
        MechstudyError: rows that are none, too few, or without the targets a transcoder needs; impossible k or
            widths, NaN or infinity in the activations (names step and row), a loss that diverged, a checkpoint that
            is damaged or of another configuration.
    """
    if cfg.kind == "clt":
        raise MechstudyError("train makes no clt", where="kind", fix="train_cross_layer, with the same arguments")
    found = _train(cfg, train_cfg, source, site_in, site_out, out, checkpoint, progress, device)
    assert isinstance(found, Dictionary)
    return found


def train_cross_layer(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    source: Any,
    *,
    site_in: str = "mlp_in",
    site_out: str = "mlp_out",
    out: AnyPath | None = None,
    checkpoint: AnyPath | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> CrossLayerTranscoder:
    """`train` for ``kind: clt``: rows are (x [N, L, d_in], y [N, L, d_out])."""
    if cfg.kind != "clt":
        raise MechstudyError(f"train_cross_layer makes no {cfg.kind}", where="kind", fix="train")
    found = _train(cfg, train_cfg, source, site_in, site_out, out, checkpoint, progress, device)
    assert isinstance(found, CrossLayerTranscoder)
    return found


def _train(
    cfg: DictionaryConfig, train_cfg: TrainConfig, source: Any, site_in: str, site_out: str, out: AnyPath | None,
    checkpoint: AnyPath | None, progress: Progress | None, device: str,
) -> Dictionary | CrossLayerTranscoder:  # fmt: skip
    source = rows_of(
        source, train_cfg.batch_size, train_cfg.seed, cfg.n_sites, needs_targets=cfg.kind not in RECONSTRUCTING
    )
    if checkpoint is not None and isinstance(source, IterableRows) and source.once:
        raise cannot_resume()
    site_out = site_out or (site_in if cfg.kind in RECONSTRUCTING else f"target of {site_in}")
    training = Training(cfg, train_cfg, source, site_in=site_in, site_out=site_out, out=out, checkpoint=checkpoint,
                        device=device)  # fmt: skip
    training.begin(source.batches(), progress)
    with (
        training,
        (progress or NullProgress()).bar("train", train_cfg.steps, "steps", done=training.step, stops=False) as bar,
    ):
        for x, y in source.batches(training.step):
            if training.finished:
                break
            last = training.stop_requested()
            bar.advance(1, **training.take(x, y, save=last))
            if training.finished:
                break
            if last:
                raise Stopped(f"{site_out} at step {training.step}")
    return training.finish()


class Training:
    """One dictionary in training: `begin`, then `take` a batch at a time, then `finish`.

    `train` drives one; `many.train_many` drives several with the batches of one pass.
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
        self.team: Team = current_team()
        self._progress: Progress | None = None
        self._state: TrainState | None = None
        self._log: ScalarLog | None = None

    @property
    def state(self) -> TrainState:
        assert self._state is not None, "begin() comes first"
        return self._state

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def finished(self) -> bool:
        return self.state.step >= self.train_cfg.steps

    def begin(self, first_batches: Iterable[tuple[Tensor, Tensor]], progress: Progress | None) -> None:
        """Go on from the checkpoint where there is one; else start from statistics of the first batches.

        What looks ill is told to `progress`; without one, Python's warnings tell it (`HealthWarning`).
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
            self.cfg, self.train_cfg, self.source.d_in, self.source.d_out, rows, self.device, self.team
        )  # fmt: skip
        self._tell(self.health.data(moments.mean_to_spread))

    def __enter__(self) -> Training:
        self._begun = time.monotonic()
        if self.out is not None and self.team.rank == 0:
            self._log = ScalarLog(self.out, tensorboard=self.train_cfg.tensorboard, start_step=self.step)
            self._begun -= self._log.seconds_before
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()

    def stop_requested(self) -> bool:
        """Whether a stop was asked for in any process: they all stop after the same step."""
        return self.team.any(requested()) if self.team.size > 1 else requested()

    def take(self, x: Tensor, y: Tensor, *, save: bool = False) -> dict[str, Any]:
        """One step on raw rows; the scalars, where this step logs any. ``save``: write the checkpoint after it.

        Raises:
            MechstudyError: rows of another width or with NaN or infinity, a loss that diverged, or poor health where
                the recipe says to stop.
        """
        cfg, train_cfg, state = self.cfg, self.train_cfg, self.state
        x, y, left_out = self._usable(x, y, state.step)
        state.left_out += left_out
        x, y = state.normalisation.apply(x, y)
        mine = self.team.share(len(x))
        x, y = x[mine], (x[mine] if y is x else y[mine])
        output = train_step(cfg, train_cfg, state, x, y, self.team)
        step, last = state.step, self.finished
        told: dict[str, Any] = {}
        if step % train_cfg.log_every == 0 or last or step == 1:
            values = _scalars(state, output, y, self.team, time.monotonic() - self._begun)
            if self._log is not None:
                self._log.write(step, values)
            told = {name: values[name] for name in ("loss", "fvu", "l0")}
            self._tell(self.health.step(step, values))
        saves = self.checkpoint is not None and (save or step % train_cfg.checkpoint_every == 0)
        if saves or last:
            _assert_finite(state, output)
        if self.checkpoint is not None and (saves or last):
            state.health = self.health.state()
            if self.team.rank == 0:
                state.save(self.checkpoint, self.fingerprint)
            self.team.wait()
        return told

    def finish(self) -> Dictionary | CrossLayerTranscoder:
        """The trained dictionary, on raw activations; a `CrossLayerTranscoder` of a clt.

        Raises:
            MechstudyError: the source ended early.
        """
        if not self.finished:
            raise MechstudyError(
                f"the activations ended at step {self.step} of {self.train_cfg.steps}",
                fix="a source that repeats its rows",
            )
        found = finished(self.cfg, self.train_cfg, self.state, self.source, self.site_in, self.site_out)
        if self.health.findings:
            found.metadata["health"] = self.health.as_json()
        return found

    def _tell(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            warned = finding.action == "warned"
            text = f"{self.site_out}, step {finding.step:,}: {finding.text}"
            text += f"; fix: {finding.fix}" if warned else ""
            if self._progress is not None:
                self._progress.log(text)
            elif warned and self.team.rank == 0:
                warn(text)

    def _usable(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, Tensor, int]:
        """The rows on the device as float32, without those that are not finite; and how many those were."""
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
    recipe = {key: value for key, value in train_cfg.canonical().items() if key not in _HOW_ONLY}
    widths = {"d_in": source.d_in, "d_out": source.d_out, "d_sae": n_features}
    return {**cfg.canonical(), **recipe, **widths, "site_in": site_in, "site_out": site_out}


def _start(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    d_in: int,
    d_out: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str,
    team: Team,
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
    if precision == "auto":  # measured, so that processes may disagree
        fast = faster_dtype(d_in, n_features, device, train_cfg.batch_size)
        precision = "bfloat16" if team.first(fast == "bfloat16") else "float32"
    return TrainState.fresh(weights, moments.normalisation, precision, device), moments


def _assert_finite(state: TrainState, output: StepOutput) -> None:
    if not torch.isfinite(output.loss) or not torch.isfinite(state.weights.dec.sum()):
        raise MechstudyError(
            f"training diverged: the loss is {float(output.loss):.3g} at step {state.step}",
            facts={"learning rate": f"{state.optimizer.lr:.3g}"},
            fix="a smaller lr, or a longer warm-up",
        )


def _scalars(state: TrainState, output: StepOutput, y: Tensor, team: Team, seconds: float) -> dict[str, Any]:
    n_rows, total, square = team.total(len(y)), y.sum(0, dtype=torch.float64), y.double().square().sum()
    team.sum(total, square)
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
