"""Train by SAELens' SAETrainer. Argument: a task file.

Own recipe: the trainer's and the architectures' defaults. Ours: learning rate, warm-up, decay, dead-latent window and
threshold rate of the task, and inputs scaled to a mean norm of sqrt(d), its option expected_average_only_in.
"""

from collections.abc import Iterator
from itertools import islice

import torch
from common import Batches, Clock, Task, answer
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

NORM_BATCHES = 64

task = Task.from_arguments()
torch.manual_seed(task.seed)
ours = task.recipe == "ours"
rows = task.rows()
batches = Batches(rows, task.batch)
n_norm = min(NORM_BATCHES, task.steps) if ours else 0
options: dict = {"d_in": rows.shape[1], "d_sae": task.n_features, "k": task.k}
if task.architecture == "matryoshka":
    options["matryoshka_widths"] = list(task.prefixes)
if ours:
    options["normalize_activations"] = "expected_average_only_in"
    if task.architecture != "topk":
        options["topk_threshold_lr"] = task.threshold_rate
name = {"matryoshka": "matryoshka_batchtopk"}.get(task.architecture, task.architecture)
cls, config = get_sae_training_class(name)
sae = cls(config(**options))
schedule = (
    {
        "lr": task.lr,
        "lr_warm_up_steps": task.warmup,
        "lr_decay_steps": task.decay,
        "dead_feature_window": max(1, task.dead_after_rows // task.batch),
        "n_batches_for_norm_estimate": n_norm,
    }
    if ours
    else {}
)
trainer_cfg = SAETrainerConfig(
    total_training_samples=task.steps * task.batch,
    train_batch_size_samples=task.batch,
    autocast=task.precision == "bfloat16",
    **schedule,
)
trainer_cfg.lr_end = trainer_cfg.lr_end or trainer_cfg.lr / 10


def provider() -> Iterator[Tensor]:
    """First the batches that the norm is estimated on, then all from the first."""
    yield from islice(batches, n_norm)
    yield from batches


clock = Clock()
SAETrainer(cfg=trainer_cfg, sae=sae, data_provider=provider()).fit()
seconds = clock.seconds()
sae.save_inference_model(task.folder)
trained = SAE.load_from_disk(task.folder)
trained.eval()


def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
    f = trained.encode(x)
    return trained.decode(f), f > 0


answer(task, seconds, reconstruct, lr=trainer_cfg.lr)
