"""Several dictionaries from one pass: equal to training each alone, and resumable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechstudy.activations import reader as reader_module
from mechstudy.activations.multi_site_batches import StoreBatches, StreamBatches
from mechstudy.activations.writer import StoreWriter
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.training.train_many import Job, View, train_many
from mechstudy.dictionaries.training.trainer import train
from mechstudy.models.sites import Site
from mechstudy.store.checkpoint import load_checkpoint
from tests.support.dictionary_worlds import SparseWorld
from tests.support.tiny import tiny_model

SITES = (Site("mlp_in", 0), Site("mlp_out", 0), Site("mlp_out", 2))
RECIPE = TrainConfig(steps=25, batch_size=64, lr=3e-3, tensorboard=False, checkpoint_every=6, precision="float32")


class WorldPass:
    """Two sparse worlds side by side; every 40th row of the first is a sink."""

    batch_size = 64
    widths: Mapping[str, int] = {"mlp_in.0": 24, "mlp_out.0": 24, "mlp_out.1": 24}
    limits: Mapping[str, float] = {"mlp_in.0": 100.0}

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.reads, self.asked = stop_at, 0, 0
        self.worlds = [SparseWorld(other_target=True, batch_size=64, seed=s) for s in (1, 2)]

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        self.reads += 1
        for step in range(start, 10**9):
            if self.reads > 1 and step == self.stop_at:
                raise KeyboardInterrupt
            self.asked += 1
            (x, y), (z, _) = (world.batch(step) for world in self.worlds)
            x[::40] *= 1e4
            yield {"mlp_in.0": x, "mlp_out.0": y, "mlp_out.1": z}


def jobs(folder: Path) -> list[Job]:
    cases = [
        ("transcoder", {"kind": "skip_transcoder", "activation": "batchtopk"}, "mlp_in.0", "mlp_out.0", 25),
        ("sae", {"kind": "sae", "activation": "topk"}, "mlp_out.1", "mlp_out.1", 25),
        ("short", {"kind": "sae", "activation": "jumprelu"}, "mlp_out.1", "mlp_out.1", 10),
    ]
    return [
        Job(name, DictionaryConfig(d_sae=48, k=3, **case), RECIPE.model_copy(update={"steps": steps}), i, o,
            folder / name, folder / f"{name}.checkpoint")
        for name, case, i, o, steps in cases
    ]  # fmt: skip


def saved(dictionary, folder: Path) -> bytes:
    dictionary.save(folder)
    return (folder / "sae_weights.safetensors").read_bytes()


def test_each_dictionary_of_a_pass_is_what_training_it_alone_gives(tmp_path):
    source = WorldPass()
    found = train_many(jobs(tmp_path / "many"), source)
    assert source.asked < 2 * 25 + 400, "the batches are read once for all, and once for their statistics"
    for job in jobs(tmp_path / "alone"):
        alone = train(job.architecture, job.recipe, View(WorldPass(), job.site_in, job.site_out),
                      site_in=job.site_in, site_out=job.site_out, out=job.out)  # fmt: skip
        assert saved(found[job.name], tmp_path / "a") == saved(alone, tmp_path / "b"), job.name


@pytest.mark.slow
def test_a_killed_pass_goes_on_with_trainings_at_different_steps(tmp_path):
    straight = train_many(jobs(tmp_path / "straight"), WorldPass())
    planned = jobs(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        train_many(planned, WorldPass(stop_at=15))
    planned[1].checkpoint.unlink()  # one of them lost its checkpoint and starts again
    steps = [load_checkpoint(job.checkpoint)[1]["step"] for job in (planned[0], planned[2])]
    assert steps == [12, 10]
    resumed = train_many(planned, WorldPass())
    for name, dictionary in straight.items():
        assert saved(dictionary, tmp_path / "a") == saved(resumed[name], tmp_path / "b"), name


def test_sinks_of_one_dictionary_stay_in_the_others(tmp_path):
    rows = next(WorldPass().batches())
    x, y = View(WorldPass(), "mlp_in.0", "mlp_out.0").select(rows)
    z, same = View(WorldPass(), "mlp_out.1", "mlp_out.1").select(rows)
    assert len(x) == len(y) == 62 and len(z) == 64 and same is z


def test_nan_names_the_dictionary_and_the_step(tmp_path):
    class Broken(WorldPass):
        def batches(self, start: int = 0):
            for step, rows in enumerate(super().batches(start), start):
                if step == 9 and self.reads > 1:
                    rows["mlp_out.1"][5, 3] = torch.nan
                yield rows

    with pytest.raises(MechstudyError, match="the input activations hold NaN") as error:
        train_many(jobs(tmp_path)[:2], Broken())
    assert error.value.where == "mlp_out.1: step 9, row 5"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_sink(value):
    source = WorldPass()
    rows = next(source.batches())
    rows["mlp_in.0"][7, 3] = value
    x, y = View(source, "mlp_in.0", "mlp_out.0").select(rows)
    assert len(x) == len(y) == 62, "two sinks are gone, and the row that is not finite is left for training to name"
    assert not torch.isfinite(x).all()


def test_unknown_sites_other_batch_sizes_and_equal_names_are_refused(tmp_path):
    one = jobs(tmp_path)[1]
    with pytest.raises(MechstudyError, match=r"mlp_out\.7 is not part of the pass"):
        View(WorldPass(), "mlp_out.7", "mlp_out.7")
    with pytest.raises(MechstudyError, match="two dictionaries are called 'sae'"):
        train_many([one, one], WorldPass())
    other = Job("x", one.architecture, one.recipe.model_copy(update={"batch_size": 32}), *["mlp_out.1"] * 2, tmp_path)
    with pytest.raises(MechstudyError, match="batch_size is 32, the pass gives 64"):
        train_many([other], WorldPass())


# ------------------------------------------------------------------------------------------- over a store


def test_a_store_pass_reads_every_row_once_rows_of_one_token_together(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "BLOCK_BYTES", 512)
    n, context = 400, 8
    writer = StoreWriter(tmp_path, {SITES[0]: 2, SITES[2]: 3}, n, "float32", seed=1)
    numbers = torch.arange(n)
    x = torch.stack([numbers, numbers + 1], 1).float()
    writer.put(0, {SITES[0]: x, SITES[2]: torch.cat([x, x[:, :1]], 1)}, numbers // context, numbers % context, numbers)
    source = StoreBatches(writer.close(), (SITES[0], SITES[2]), 10)
    assert source.rows_per_epoch == 350
    epoch = list(islice(source.batches(), 35))
    seen = torch.cat([rows["mlp_in.0"][:, 0] for rows in epoch])
    assert sorted(seen.long().tolist()) == [r for r in range(n) if r % context]
    for rows in epoch:
        assert torch.equal(rows["mlp_in.0"], rows["mlp_out.2"][:, :2])
    later = next(iter(source.batches(20)))
    assert torch.equal(later["mlp_in.0"], epoch[20]["mlp_in.0"])


# ------------------------------------------------------------------------------------------ over the model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", dtype="float32", n_layers=3, d=16)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 256, (30, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


def stream(model, tokens, **options) -> StreamBatches:
    return StreamBatches(model, tokens, SITES, 16, window_rows=80, dtype=torch.float32, sink_ratio=None, **options)


def test_streamed_rows_are_the_activations_without_first_positions(model, tokens):
    source = stream(model, tokens)
    expected = model.forward(tokens.long(), capture=SITES, logits_at=None).activations
    by_row = {tuple(row.tolist()): row for row in expected[SITES[0]][:, 1:].flatten(0, 1)}
    windows = 3 * source.steps_per_window
    seen = [row for rows in islice(source.batches(), windows) for row in rows["mlp_in.0"]]
    nearest = torch.stack(list(by_row.values()))
    distances = torch.cdist(torch.stack(seen), nearest, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert distances.values.max() < 1e-5
    assert len(set(distances.indices.tolist())) == len(seen) == 240, "30 documents of 8 rows, each once"


def test_a_streamed_pass_starts_at_any_step_and_reshuffles_each_epoch(model, tokens):
    straight = list(islice(stream(model, tokens).batches(), 40))
    for step in (1, 7, 15, 39):
        later = next(iter(stream(model, tokens).batches(step)))
        assert all(torch.equal(later[site], straight[step][site]) for site in later)
    assert not torch.equal(straight[0]["mlp_in.0"], straight[15]["mlp_in.0"])


def test_mixing_is_measured(model, tokens):
    source = stream(model, tokens)
    assert 0.5 < source.mixing() < 1.0
    alone = StreamBatches(model, tokens[:1], SITES, 8, window_rows=8, sink_ratio=None)
    assert alone.mixing() == 1.0, "there is one document, so nothing could be mixed better"
    whole = StreamBatches(model, tokens, SITES, 16, window_rows=240, sink_ratio=None)
    assert whole.mixing() > source.mixing()


@pytest.mark.slow
def test_a_stream_trains_what_the_same_stream_trains_alone(model, tokens, tmp_path):
    cfg = DictionaryConfig(kind="transcoder", d_sae=32, k=3)
    recipe = RECIPE.model_copy(update={"batch_size": 16})
    planned = [Job("a", cfg, recipe, "mlp_in.0", "mlp_out.0", tmp_path / "a")]
    planned.append(Job("b", cfg.model_copy(update={"kind": "sae"}), recipe, *["mlp_out.2"] * 2, tmp_path / "b"))
    found = train_many(planned, stream(model, tokens))
    view = View(stream(model, tokens), "mlp_in.0", "mlp_out.0")
    alone = train(cfg, recipe, view, site_in="mlp_in.0", site_out="mlp_out.0", out=tmp_path / "c")
    assert saved(found["a"], tmp_path / "x") == saved(alone, tmp_path / "y")
