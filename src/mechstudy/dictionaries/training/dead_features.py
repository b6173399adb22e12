"""Resampling of dead features at badly reconstructed rows (Bricken et al. 2023, "neuron resampling")."""

from __future__ import annotations

import torch
from torch import Tensor

from mechstudy.core.seeds import torch_generator
from mechstudy.dictionaries.config import RECONSTRUCTING, DictionaryConfig
from mechstudy.dictionaries.training.data_parallel import ProcessGroup
from mechstudy.dictionaries.training.state import TrainState

ENCODER_SHARE = 0.2  # length of a new encoder row, as a share of the mean over features that are not dead


def resample(
    cfg: DictionaryConfig, state: TrainState, x_ND: Tensor, error_ND: Tensor, seed: int, group: ProcessGroup
) -> None:
    """Give every dead feature the direction of a row drawn with probability proportional to its squared loss.

    The new encoder row is that row; so is the decoder row of an SAE, and a transcoder's is the row's error. The
    optimizer's state of the feature is reset. The draw depends on seed and step alone.
    """
    dead = state.dead
    if dead is None or not len(dead) or cfg.kind == "clt":
        return
    losses = error_ND.square().sum(1)
    by_rank = group.gather(losses)
    generator = torch_generator(seed, "dictionary", f"resampling at step {state.step}")
    chance = torch.cat(by_rank).double().cpu().square()
    chosen = torch.multinomial(chance + 1e-30, len(dead), replacement=len(dead) > len(chance), generator=generator)
    first = sum(len(part) for part in by_rank[: group.rank])
    mine = ((chosen >= first) & (chosen < first + len(x_ND))).nonzero().squeeze(1).to(x_ND.device)
    rows, missing = x_ND.new_zeros(len(dead), x_ND.shape[1]), error_ND.new_zeros(len(dead), error_ND.shape[1])
    at = chosen.to(x_ND.device)[mine] - first
    rows[mine], missing[mine] = x_ND[at], -error_ND[at]
    group.sum(rows, missing)

    weights = state.weights
    alive = torch.ones(len(weights.b_enc), dtype=torch.bool, device=dead.device)
    alive[dead] = False
    rows = torch.nn.functional.normalize(rows, dim=1)
    reads = torch.linalg.vector_norm(weights.enc[alive], dim=1).mean() if alive.any() else rows.new_ones(())
    writes = torch.linalg.vector_norm(weights.dec[alive], dim=1).mean() if alive.any() else rows.new_ones(())
    weights.enc[dead] = rows * reads * ENCODER_SHARE
    decoded = rows if cfg.kind in RECONSTRUCTING else torch.nn.functional.normalize(missing, dim=1) * writes
    weights.dec[dead] = decoded
    weights.b_enc[dead] = 0.0
    for name in ("enc", "dec", "b_enc"):
        for moment in state.optimizer.moments[name]:
            moment[dead] = 0.0
        if name in state.scratch.copies:
            state.scratch.copies[name][dead] = getattr(weights, name)[dead].to(state.scratch.copies[name].dtype)
    state.rows_since_fired[dead] = 0
    state.dead = dead[:0]
