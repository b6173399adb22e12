"""One step in parts, over processes, and with dead features that start again."""

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.initialise import Normalisation
from mechstudy.dictionaries.training.state import TrainState
from mechstudy.dictionaries.training.step import train_step
from mechstudy.dictionaries.training.trainer import train
from mechstudy.dictionaries.weights import Weights
from tests.support.dictionary_worlds import SparseWorld

SITES = {"site_in": "mlp_in.1", "site_out": "mlp_out.1"}
SHORT = TrainConfig(steps=30, batch_size=64, lr=3e-3, tensorboard=False, log_every=5, precision="float32")


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["topk", "relu", "gated"])
def test_a_batch_in_parts_gives_the_weights_of_the_whole(activation):
    cfg = DictionaryConfig(kind="transcoder", d_sae=64, k=4, activation=activation)
    found = [
        train(
            cfg,
            SHORT.model_copy(update={"accumulate": n, "revive": "off"}),
            SparseWorld(batch_size=64, other_target=True),
            **SITES,
        )
        for n in (1, 3)
    ]
    for (name, a), (_, b) in zip(*(d.named_parameters() for d in found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


WORKER = """
    import json, os, sys
    import torch
    from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
    from mechstudy.dictionaries.training.trainer import train
    from pathlib import Path
    from tests.support.dictionary_worlds import SparseWorld

    torch.set_num_threads(1)
    out, fields, recipe = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    rank = int(os.environ.get("RANK", 0))
    dictionary = train(
        DictionaryConfig(**fields), TrainConfig(**recipe), SparseWorld(batch_size=64, other_target=True),
        site_in="mlp_in.1", site_out="mlp_out.1", out=out, checkpoint=out / "checkpoint",
    )
    dictionary.save(out / f"rank{rank}")
"""


def trained_by(processes: int, folder: Path, fields: dict, recipe: dict) -> list[dict]:
    folder.mkdir()
    script = folder / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*launch, str(script), str(folder), json.dumps(fields), json.dumps(recipe)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / "scalars.jsonl").open()]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu", "relu"])
def test_two_processes_have_the_losses_of_one(activation, tmp_path):
    fields = {"kind": "transcoder", "d_sae": 200, "k": 2, "activation": activation}
    recipe = SHORT.model_dump() | {"dead_after_rows": 300, "log_every": 1}
    alone = trained_by(1, tmp_path / "one", fields, recipe)
    together = trained_by(2, tmp_path / "two", fields, recipe)
    assert len(alone) == len(together) == SHORT.steps
    for a, b in zip(alone, together, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"loss", "fvu", "l0", "aux_loss", "penalty"}:
            # Sums run in another order; a feature at the edge of being chosen may then fall on the other side.
            assert b[name] == pytest.approx(a[name], rel=2e-3), (a["step"], name)
    assert any("aux_loss" in line for line in alone)
    weights = [(tmp_path / "two" / f"rank{rank}" / "sae_weights.safetensors").read_bytes() for rank in (0, 1)]
    assert weights[0] == weights[1], "every process ends with the same dictionary"


def test_schedules_say_what_they_do():
    at = {
        name: TrainConfig(steps=100, warmup_steps=10, schedule=name).lr_factor
        for name in ("linear", "cosine", "constant")
    }
    for factor in at.values():
        assert factor(0) == pytest.approx(0.1, rel=0.01)
    assert at["linear"](49) == at["constant"](50) == at["constant"](99) == 1.0
    assert at["linear"](99) == pytest.approx(1 / 51)
    assert at["cosine"](50) == pytest.approx(0.5)
    assert at["cosine"](99) == pytest.approx(0.5 * (1 - math.cos(math.pi / 100)))


def dying_state(kind: str) -> tuple[DictionaryConfig, TrainState, SparseWorld]:
    source = SparseWorld(offset=0.0, batch_size=256, other_target=kind != "sae")
    generator = torch.Generator().manual_seed(0)
    dec = torch.nn.functional.normalize(torch.randn(64, 24, generator=generator))
    b_enc = torch.zeros(64)
    b_enc[40:] = -50.0
    weights = Weights(dec.clone(), b_enc, dec.clone(), torch.zeros(24))
    norm = Normalisation(torch.zeros(24), 0.3, torch.zeros(24), 0.3)
    return DictionaryConfig(kind=kind, d_sae=64, k=4), TrainState.fresh(weights, norm, "bfloat16", "cpu"), source


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_resampled_features_read_badly_reconstructed_rows_and_fire_again(kind):
    cfg, state, source = dying_state(kind)
    recipe = TrainConfig(
        steps=60, batch_size=256, lr=1e-2, dead_after_rows=1_024, revive="resample", tensorboard=False,
    )  # fmt: skip
    moved = 0
    for step in range(60):
        before = state.weights.enc.clone()
        output = train_step(cfg, recipe, state, *state.normalisation.apply(*source.batch(step)))
        assert output.aux_loss is None
        jumped = (state.weights.enc - before).norm(dim=1) > 0.3
        moved += int(jumped[40:].sum())
        assert state.rows % 1_024 == 0 or not jumped.any(), "only where dead features are counted"
        if "enc" in state.scratch.copies:
            torch.testing.assert_close(state.scratch.copies["enc"], state.weights.enc.bfloat16(), rtol=0, atol=0)
    assert moved >= 24
    assert (state.rows_since_fired[40:] < 1_024).float().mean() > 0.5
    if kind == "sae":
        torch.testing.assert_close(state.weights.dec.norm(dim=1), torch.ones(64))


def test_without_revival_they_stay_dead():
    cfg, state, source = dying_state("sae")
    recipe = TrainConfig(steps=60, batch_size=256, lr=1e-2, dead_after_rows=1_024, revive="off", tensorboard=False)
    for step in range(60):
        train_step(cfg, recipe, state, *state.normalisation.apply(*source.batch(step)))
    assert len(state.dead) == 24
