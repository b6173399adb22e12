"""Train by dictionary_learning's trainSAE, inputs normalised as it recommends. Argument: a task file.

Own recipe: defaults, but warm-up (1,000 steps) no more than a twentieth of the run, which would not begin otherwise,
and the threshold's running mean from the middle of a run that is shorter than 2,000 steps (default: from step 1,000,
so that there would be none). Ours: the task's learning rate, warm-up, decay, dead-latent window and threshold rate.
"""

from common import Batches, Clock, Task, answer
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE, MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from torch import Tensor

KINDS = {
    "topk": (TopKTrainer, AutoEncoderTopK),
    "batchtopk": (BatchTopKTrainer, BatchTopKSAE),
    "matryoshka": (MatryoshkaBatchTopKTrainer, MatryoshkaBatchTopKSAE),
}
task = Task.from_arguments()
base, cls = KINDS[task.architecture]
made = []


class Trainer(base):  # type: ignore[misc,valid-type]
    """Its trainer, kept in `made`, with the task's dead-latent window in our recipe: it is no option of theirs.

    Autocast goes around one update, as in its `trainSAE` on CUDA. Around the whole run it would keep the bfloat16
    copies of the first step's weights to the end.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        if task.recipe == "ours":
            self.dead_feature_threshold = task.dead_after_rows
        made.append(self)

    def update(self, step: int, x: Tensor) -> object:
        with task.autocast():
            return super().update(step, x)


rows = task.rows()
options = {
    "trainer": Trainer,
    "steps": task.steps,
    "activation_dim": rows.shape[1],
    "dict_size": task.n_features,
    "k": task.k,
    "layer": 0,
    "lm_name": "rows",
    "seed": task.seed,
    "device": "cpu",
    "warmup_steps": min(1_000, task.steps // 20),
    "threshold_start_step": min(1_000, task.steps // 2),
}
if task.architecture == "matryoshka":
    options["group_fractions"] = [
        (b - a) / task.n_features for a, b in zip([0, *task.prefixes], task.prefixes, strict=False)
    ]
if task.recipe == "ours":
    options |= {
        "lr": task.lr,
        "warmup_steps": task.warmup,
        "decay_start": task.steps - task.decay,
        "threshold_beta": 1 - task.threshold_rate,
    }
clock = Clock()
trainSAE(
    data=Batches(rows, task.batch),
    trainer_configs=[options],
    steps=task.steps,
    save_dir=str(task.folder),
    normalize_activations=True,
    device="cpu",
)
seconds = clock.seconds()
saved = task.folder / "trainer_0"
for file in ("ae.pt", "config.json"):
    (saved / file).replace(task.folder / file)
trained = cls.from_pretrained(str(task.folder / "ae.pt"))


def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
    y_hat, f = trained(x, output_features=True)
    return y_hat, f > 0


answer(task, seconds, reconstruct, lr=made[0].lr)
