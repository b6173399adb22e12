"""One optimisation step."""

from __future__ import annotations

import torch
from torch import Tensor

from mechstudy.dictionaries.architectures import Architecture, architecture_of
from mechstudy.dictionaries.config import RECONSTRUCTING, DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.data_parallel import ALONE, ProcessGroup
from mechstudy.dictionaries.training.dead_features import resample
from mechstudy.dictionaries.training.gradients import StepOutput, clip_factor, loss_and_gradients
from mechstudy.dictionaries.training.optimizer import relative_rates
from mechstudy.dictionaries.training.sparsity_controller import coefficient
from mechstudy.dictionaries.training.state import TrainState


def train_step(
    cfg: DictionaryConfig,
    train_cfg: TrainConfig,
    state: TrainState,
    x: Tensor,
    y: Tensor,
    group: ProcessGroup = ALONE,
) -> StepOutput:
    """One optimisation step on a normalised batch, or on this process' rows of it; changes `state`.

    Returns:
        Loss, penalties and gradients of the whole batch; error and codes of this process' rows (of the last part, if
        the batch is processed in parts).
    """
    architecture, unit = architecture_of(cfg), cfg.kind in RECONSTRUCTING
    weight = _coefficient(cfg, architecture, state)
    n_rows = int(group.total(len(x)))
    parts = list(zip(x.chunk(train_cfg.accumulate), (y if y is not x else x).chunk(train_cfg.accumulate), strict=True))
    fired = torch.zeros(len(state.weights.b_enc), device=x.device)
    total: StepOutput | None = None
    active, minima = 0.0, []
    for x_part, y_part in parts:
        output = loss_and_gradients(
            state.weights,
            x_part,
            y_part,
            architecture,
            dense_dtype=torch.bfloat16 if state.precision == "bfloat16" else x.dtype,
            guess=state.last_minimum,
            prefixes=cfg.prefixes(len(state.weights.b_enc)),
            coefficient=weight,
            unit_decoder=unit,
            dead=state.dead if train_cfg.revive == "aux" else None,
            aux_k=train_cfg.resolved_aux_k(y.shape[1]),
            aux_alpha=train_cfg.aux_alpha,
            scratch=state.scratch,
            n_sites=cfg.n_sites if cfg.kind == "clt" else 0,
            n_rows=n_rows,
            group=group,
        )
        fired += output.codes.fired()
        active += float((output.codes.values > 0).sum())
        minima.append(output.minimum)
        total = output if len(parts) == 1 else _added(total, output)
    assert total is not None
    _sum_over(group, total, fired)
    state.optimizer.step(
        state.weights,
        total.gradients,
        train_cfg.resolved_lr(len(state.weights.b_enc)) * train_cfg.lr_factor(state.step),
        rates=relative_rates(unit, train_cfg.frozen),
        factor=clip_factor(total.gradients, train_cfg.clip, total.squares),
        unit=("dec",) if unit else (),
        copies=state.scratch.copies,
        squares=total.squares,
    )
    if train_cfg.ema is not None:
        state.observe_weights(train_cfg.ema)
    kept = [minimum for minimum in minima if minimum is not None]
    if kept:
        state.observe_minimum(sum(kept) / len(kept), train_cfg.threshold_rate())
    before = state.rows
    state.observe_codes(fired > 0, n_rows, train_cfg.resolved_dead_after())
    total.active = group.total(active)
    state.last_l0 = total.active / n_rows
    if cfg.coefficient is None:
        architecture.after_step(state.weights, state.last_l0)
    state.step += 1
    if train_cfg.revive == "resample" and state.rows // train_cfg.resolved_dead_after() > before // (
        train_cfg.resolved_dead_after()
    ):
        resample(cfg, state, x[-len(total.error_ND) :], total.error_ND, train_cfg.seed, group)
    return total


def _added(total: StepOutput | None, output: StepOutput) -> StepOutput:
    """The sum of two parts' losses and gradients; other fields are the later one's. Gradients are not in scratch."""
    output.squares.clear()
    if total is None:
        for name, gradient in output.gradients.named():
            output.gradients.put(name, gradient.clone())
        return output
    for (name, gradient), (_, more) in zip(total.gradients.named(), output.gradients.named(), strict=True):
        output.gradients.put(name, gradient.add_(more))
    output.loss = total.loss + output.loss
    for name in ("penalty", "aux_loss"):
        before, now = getattr(total, name), getattr(output, name)
        setattr(output, name, now if before is None else before if now is None else before + now)
    return output


def _sum_over(group: ProcessGroup, output: StepOutput, fired: Tensor) -> None:
    if group.size == 1:
        return
    losses = [loss for loss in (output.loss, output.penalty, output.aux_loss) if loss is not None]
    group.sum(fired, *losses, *(gradient for _, gradient in output.gradients.named()))
    output.squares.clear()


def _coefficient(cfg: DictionaryConfig, architecture: Architecture, state: TrainState) -> float:
    """The penalty's coefficient: configured, set by the controller, or 1 if the penalty has its own scale."""
    if cfg.coefficient is not None:
        return cfg.coefficient
    if not architecture.needs_control:
        return 1.0
    value, state.control = coefficient(state.control, state.last_l0, cfg.k)
    return value
