"""The trainer: it learns, it resumes bit for bit, and it refuses what cannot work."""

import json
from itertools import islice

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress
from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.evaluation.reconstruction import evaluate
from mechstudy.dictionaries.training.initialise import Normalisation
from mechstudy.dictionaries.training.state import TrainState
from mechstudy.dictionaries.training.trainer import Training, train, train_step
from mechstudy.dictionaries.weights import Weights
from mechstudy.store.checkpoint import load_checkpoint
from tests.support.dictionary_worlds import SparseWorld, StoppingWorld

KINDS = ("sae", "transcoder", "skip_transcoder")
ACTIVATIONS = ("topk", "batchtopk")
EVERY_ARCHITECTURE = [
    *({"activation": a} for a in ("topk", "batchtopk", "relu", "gated", "jumprelu")),
    *({"activation": a, "penalty": p} for a in ("relu", "gated") for p in ("sqrt", "tanh")),
    {"activation": "jumprelu", "penalty": "tanh"},
    *({"activation": a, "matryoshka": True} for a in ("topk", "batchtopk", "jumprelu")),
]
SHORT = TrainConfig(
    steps=40, batch_size=64, lr=3e-3, tensorboard=False, checkpoint_every=10, log_every=10, precision="float32"
)


def sites(kind: str) -> dict[str, str]:
    return {"site_in": "mlp_out.1" if kind == "sae" else "mlp_in.1", "site_out": "mlp_out.1"}


def world(kind: str, cls: type[SparseWorld] = SparseWorld, **options) -> SparseWorld:
    return cls(other_target=kind != "sae", batch_size=64, **options)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_recovers_most_variance_of_a_sparse_world(kind, activation, tmp_path):
    source = SparseWorld(d=32, n_true=40, active=2, other_target=kind != "sae", batch_size=256)
    cfg = DictionaryConfig(kind=kind, activation=activation, d_sae=96, k=4)
    recipe = TrainConfig(steps=400, batch_size=256, lr=1e-2, tensorboard=False, precision="float32")
    dictionary = train(cfg, recipe, source, **sites(kind), out=tmp_path)
    scores = evaluate(dictionary, [source.batch(10_000 + i) for i in range(4)])
    assert scores["r2"] > 0.9
    assert 1.0 < scores["l0"] <= 4.5  # the calibrated threshold stands for k


@pytest.mark.slow
@pytest.mark.parametrize("case", EVERY_ARCHITECTURE, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_killed_and_resumed_training_saves_the_same_bytes(kind, case, precision, tmp_path):
    cfg = DictionaryConfig(kind=kind, d_sae=128, k=2, **case)
    recipe = SHORT.model_copy(update={"precision": precision, "dead_after_rows": 200, "checkpoint_every": 7})
    straight, resumed, checkpoint = tmp_path / "a", tmp_path / "b", tmp_path / "checkpoint"
    train(cfg, recipe, world(kind), **sites(kind), out=straight).save(straight)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, recipe, world(kind, StoppingWorld), **sites(kind), out=resumed, checkpoint=checkpoint)
    assert load_checkpoint(checkpoint)[1]["step"] == 14
    train(cfg, recipe, world(kind), **sites(kind), out=resumed, checkpoint=checkpoint).save(resumed)
    for name in ("sae_weights.safetensors", "cfg.json"):
        assert (straight / name).read_bytes() == (resumed / name).read_bytes()
    assert any(line.get("aux_loss") for line in map(json.loads, (straight / "scalars.jsonl").open()))
    logs = [[json.loads(line) for line in (d / "scalars.jsonl").open()] for d in (straight, resumed)]
    for line in logs[0] + logs[1]:
        line.pop("seconds")
    assert logs[0] == logs[1]


def test_resuming_keeps_the_precision_of_the_checkpoint(tmp_path, monkeypatch):
    cfg = DictionaryConfig(kind="sae", d_sae=64, k=4)
    recipe = SHORT.model_copy(update={"precision": "auto"})
    monkeypatch.setattr("mechstudy.dictionaries.training.trainer.faster_dtype", lambda *_: "bfloat16")
    with pytest.raises(KeyboardInterrupt):
        train(cfg, recipe, world("sae", StoppingWorld), **sites("sae"), out=tmp_path, checkpoint=tmp_path / "c")
    monkeypatch.setattr("mechstudy.dictionaries.training.trainer.faster_dtype", lambda *_: "float32")
    progress = NullProgress()
    dictionary = train(
        cfg, recipe, world("sae"), **sites("sae"), out=tmp_path, checkpoint=tmp_path / "c", progress=progress
    )
    assert dictionary.metadata["precision"] == "bfloat16"
    assert any("resumed at step 20 " in message for message in progress.messages)


def test_ema_averages_the_weights_and_resumes_to_the_same_bytes(tmp_path):
    cfg, source = DictionaryConfig(kind="sae", d_sae=64, k=4), world("sae")
    recipe = SHORT.model_copy(update={"ema": 0.9, "steps": 20, "checkpoint_every": 7})
    training = Training(cfg, recipe, source, **sites("sae"), out=None)
    training.begin(source.batches(), NullProgress())
    mean: torch.Tensor | None = None
    with training:
        for x, y in islice(source.batches(), 20):
            training.take(x, y)
            dec = training.state.weights.dec
            mean = dec.clone() if mean is None else 0.9 * mean + 0.1 * dec
    straight = training.finish()
    torch.testing.assert_close(straight.W_dec, mean)
    assert not torch.allclose(straight.W_dec, training.state.weights.dec, rtol=1e-3)
    stopping = world("sae", StoppingWorld)
    stopping.stop_at = 16
    with pytest.raises(KeyboardInterrupt):
        train(cfg, recipe, stopping, **sites("sae"), out=tmp_path, checkpoint=tmp_path / "c")
    resumed = train(cfg, recipe, source, **sites("sae"), out=tmp_path, checkpoint=tmp_path / "c")
    assert torch.equal(resumed.W_dec, straight.W_dec) and torch.equal(resumed.b_enc, straight.b_enc)


def test_a_finished_checkpoint_gives_the_dictionary_without_more_steps(tmp_path):
    cfg = DictionaryConfig(kind="sae", d_sae=64, k=4)
    first = train(cfg, SHORT, world("sae"), **sites("sae"), out=tmp_path, checkpoint=tmp_path / "c")
    again = train(cfg, SHORT, world("sae"), **sites("sae"), out=tmp_path, checkpoint=tmp_path / "c")
    torch.testing.assert_close(first.W_dec, again.W_dec, rtol=0, atol=0)


def test_decoder_rows_of_an_sae_are_unit_after_every_step_and_saved_so(tmp_path):
    cfg = DictionaryConfig(kind="sae", d_sae=64, k=4)
    source = world("sae")
    generator = torch.Generator().manual_seed(0)
    dec = torch.nn.functional.normalize(torch.randn(64, 24, generator=generator))
    weights = Weights(dec.clone(), torch.zeros(64), dec, torch.zeros(24))
    state = TrainState.fresh(weights, Normalisation(torch.zeros(24), 1.0, torch.zeros(24), 1.0), "float32", "cpu")
    for step in range(3):
        x, y = source.batch(step)
        train_step(cfg, SHORT, state, x, y)
        torch.testing.assert_close(state.weights.dec.norm(dim=1), torch.ones(64))
    saved = train(cfg, SHORT, source, **sites("sae"), out=tmp_path)
    torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(64))


def test_dead_features_come_back_through_the_auxiliary_loss():
    source = SparseWorld(offset=0.0, batch_size=256)
    alive = {}
    for alpha in (0.0, 1 / 32):
        generator = torch.Generator().manual_seed(0)
        dec = torch.nn.functional.normalize(torch.randn(64, 24, generator=generator))
        b_enc = torch.zeros(64)
        b_enc[16:] = -3.0  # beyond any row's reach: dead, though the world has 48 features to be found
        weights = Weights(dec.clone(), b_enc, dec, torch.zeros(24))
        norm = Normalisation(torch.zeros(24), 0.3, torch.zeros(24), 0.3)
        state = TrainState.fresh(weights, norm, "float32", "cpu")
        recipe = SHORT.model_copy(update={"aux_alpha": alpha, "dead_after_rows": 2560, "steps": 200, "lr": 1e-2})
        for step in range(200):
            train_step(DictionaryConfig(kind="sae", d_sae=64, k=3), recipe, state, *norm.apply(*source.batch(step)))
        alive[alpha] = 64 - len(state.dead)
    assert alive[1 / 32] > alive[0.0] + 10


@pytest.mark.slow
@pytest.mark.parametrize("where", ["input", "target"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_activations_are_named_by_step_and_row(where, value, tmp_path):
    class Broken(SparseWorld):
        def batch(self, step):
            x, y = super().batch(step)
            if step == 300:
                (x if where == "input" else y)[17, 3] = value
            return x, y

    source = Broken(other_target=True, batch_size=64)
    recipe = SHORT.model_copy(update={"steps": 320})
    with pytest.raises(MechstudyError, match="step 300, row 17") as caught:
        train(DictionaryConfig(d_sae=64, k=4), recipe, source, **sites("transcoder"), out=tmp_path)
    assert where in str(caught.value)


def test_impossible_shapes_are_refused(tmp_path):
    with pytest.raises(MechstudyError, match="k = 99 active features out of d_sae = 96"):
        train(DictionaryConfig(k=99), SHORT, world("transcoder"), **sites("transcoder"), out=tmp_path)
    source = world("sae")
    source.d_in = source.d_out = 25
    with pytest.raises(MechstudyError, match="25 columns were promised"):
        train(DictionaryConfig(kind="sae", k=4), SHORT, source, **sites("sae"), out=tmp_path)
    source.d_out = 24
    with pytest.raises(MechstudyError, match="another width"):
        train(DictionaryConfig(kind="sae", k=4), SHORT, source, **sites("sae"), out=tmp_path)
    with pytest.raises(MechstudyError, match="another site"):
        train(DictionaryConfig(kind="sae", k=4), SHORT, world("sae"), **sites("transcoder"), out=tmp_path)


def test_a_checkpoint_of_another_configuration_is_refused_with_the_change(tmp_path):
    cfg = DictionaryConfig(kind="sae", d_sae=64, k=4)
    train(cfg, SHORT, world("sae"), **sites("sae"), out=tmp_path, checkpoint=tmp_path / "c")
    with pytest.raises(MechstudyError, match="another training configuration") as caught:
        train(
            cfg.model_copy(update={"k": 5}),
            SHORT,
            world("sae"),
            **sites("sae"),
            out=tmp_path,
            checkpoint=tmp_path / "c",
        )
    assert "4 in the checkpoint, 5 now" in str(caught.value)


def test_a_source_that_ends_early_is_an_error(tmp_path):
    class Short(SparseWorld):
        def batches(self, start=0):
            return iter([self.batch(step) for step in range(start, 5)])

    with pytest.raises(MechstudyError, match="ended at step 5 of 40"):
        train(DictionaryConfig(kind="sae", d_sae=64, k=4), SHORT, Short(batch_size=64), **sites("sae"), out=tmp_path)


def test_diverging_training_is_an_error(tmp_path):
    recipe = SHORT.model_copy(update={"lr": 1e30, "warmup_steps": 0})
    with pytest.raises(MechstudyError, match="diverged"):
        train(DictionaryConfig(d_sae=64, k=4), recipe, world("transcoder"), **sites("transcoder"), out=tmp_path)


def test_scalars_go_to_json_lines_and_to_tensorboard_unless_switched_off(tmp_path):
    cfg = DictionaryConfig(kind="sae", activation="batchtopk", d_sae=64, k=4)
    recipe = SHORT.model_copy(update={"tensorboard": True})
    train(cfg, recipe, world("sae"), **sites("sae"), out=tmp_path / "on")
    lines = [json.loads(line) for line in (tmp_path / "on" / "scalars.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 10, 20, 30, 40]
    assert {"loss", "fvu", "l0", "lr", "dead_share", "rows", "seconds"} <= set(lines[0])
    assert lines[-1]["rows"] == 40 * 64
    assert lines[-1]["fvu"] < lines[0]["fvu"]
    assert list((tmp_path / "on" / "tensorboard").iterdir())
    train(cfg, SHORT, world("sae"), **sites("sae"), out=tmp_path / "off")
    assert not (tmp_path / "off" / "tensorboard").exists()


def test_max_input_norm_of_the_source_reaches_the_dictionary(tmp_path):
    source = world("sae")
    source.max_input_norm = 12.5
    dictionary = train(DictionaryConfig(kind="sae", d_sae=64, k=4), SHORT, source, **sites("sae"), out=tmp_path)
    dictionary.save(tmp_path)
    assert Dictionary.load(tmp_path).max_input_norm == 12.5


@pytest.mark.parametrize("step,share", [(0, 0.1), (9, 1.0), (50, 1.0), (79, 1.0), (80, 20 / 21), (99, 1 / 21)])
def test_learning_rate_warms_up_holds_and_decays(step, share):
    recipe = TrainConfig(steps=100, warmup_steps=10, decay_share=0.2)
    assert recipe.lr_factor(step) == pytest.approx(share)


def test_learning_rate_rule_is_openais_for_long_runs_and_higher_else():
    assert TrainConfig(steps=50_000).resolved_lr(2**14) == pytest.approx(2e-4)
    assert TrainConfig(steps=50_000).resolved_lr(2**16) == pytest.approx(1e-4)
    assert TrainConfig(steps=12_500).resolved_lr(2**14) == pytest.approx(2e-4 * 4 ** (2 / 3))
    assert TrainConfig(steps=10).resolved_lr(4_608) == 5e-3
    assert TrainConfig(steps=10).resolved_lr(576) == 1e-2
    assert TrainConfig(steps=10, lr=0.5).resolved_lr(64) == 0.5


@pytest.mark.parametrize("steps", [100, 400])
def test_batch_topk_threshold_stands_for_k_even_after_a_short_run(steps, tmp_path):
    source = SparseWorld(d=32, n_true=40, active=6, batch_size=256)
    recipe = TrainConfig(steps=steps, batch_size=256, tensorboard=False, precision="float32")
    cfg = DictionaryConfig(kind="sae", activation="batchtopk", d_sae=96, k=6)
    dictionary = train(cfg, recipe, source, **sites("sae"), out=tmp_path)
    assert evaluate(dictionary, [source.batch(10_000)])["l0"] == pytest.approx(6, rel=0.15)


def test_both_widths_given_is_an_error_and_neither_means_four_times():
    with pytest.raises(ValueError, match="both given"):
        DictionaryConfig(expansion=2, d_sae=64)
    assert DictionaryConfig(k=4).width(24) == 96


@pytest.mark.parametrize("kind", ["sae", "skip_transcoder"])
@pytest.mark.parametrize(("frozen", "name", "other"), [("encoder", "W_enc", "W_dec"), ("decoder", "W_dec", "W_enc")])
def test_a_frozen_matrix_keeps_its_initial_weights_and_all_else_learns(kind, frozen, name, other):
    cfg = DictionaryConfig(kind=kind, d_sae=64, k=4)
    one, many = (
        train(cfg, SHORT.model_copy(update={"steps": steps, "frozen": frozen}), world(kind), **sites(kind))
        for steps in (1, 40)
    )
    free = train(cfg, SHORT.model_copy(update={"steps": 40}), world(kind), **sites(kind))
    # Statistics of the first rows scale both alike: what is compared are directions.
    directions = [torch.nn.functional.normalize(getattr(d, name).flatten(), dim=0) for d in (one, many, free)]
    torch.testing.assert_close(directions[0], directions[1], rtol=1e-5, atol=1e-6)
    assert (directions[1] - directions[2]).norm() > 0.05
    assert (getattr(one, other) - getattr(many, other)).norm() > 0.05 * getattr(one, other).norm()


def test_frozen_weights_are_not_resampled():
    with pytest.raises(MechstudyError, match="resampling would change the frozen decoder"):
        TrainConfig(frozen="decoder", revive="resample")


def test_a_recipe_without_frozen_weights_has_the_ids_it_always_had():
    assert "frozen" not in TrainConfig().canonical() and TrainConfig(frozen="encoder").canonical()["frozen"]
