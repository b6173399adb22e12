"""Train a TopK SparseCoder as sparsify's Trainer does, on rows instead of a model's hook. Argument: a task file.

Own recipe: its default, schedule-free sign descent at its default learning rate. Ours: its other optimizer, Adam, with
its linear schedule, at the task's learning rate and warm-up.
"""

import torch
from common import Batches, Clock, Task, answer
from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.sign_sgd import SignSGD
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

task = Task.from_arguments()
assert task.architecture == "topk", task.architecture
torch.manual_seed(task.seed)
rows = task.rows()
sae = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=task.n_features, k=task.k))
if task.recipe == "own":
    lr = 5e-3 / (task.n_features / 2**14) ** 0.5
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=lr), momentum=0.95)
    optimizer.train()
    schedule = None
else:
    lr = task.lr
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    schedule = get_linear_schedule_with_warmup(optimizer, task.warmup, task.steps)
clock = Clock()
for step, x in zip(range(task.steps), Batches(rows, task.batch), strict=False):
    if step == 0:
        sae.b_dec.data = x.mean(0)
    sae.set_decoder_norm_to_unit_norm()
    with task.autocast():
        out = sae(x)
    out.fvu.backward()
    sae.remove_gradient_parallel_to_decoder_directions()
    optimizer.step()
    optimizer.zero_grad()
    if schedule is not None:
        schedule.step()
    if step % 50 == 0:
        print(f"step {step}: FVU {float(out.fvu):.4f}", flush=True)
if task.recipe == "own":
    optimizer.eval()
seconds = clock.seconds()
sae.save_to_disk(task.folder)


def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
    out = sae(x)
    on = torch.zeros(len(x), task.n_features, dtype=torch.bool)
    return out.sae_out, on.scatter_(1, out.latent_indices, out.latent_acts > 0)


answer(task, seconds, reconstruct, lr=lr)
