"""The world with known features: what it promises, and that its scores can tell good dictionaries from bad."""

import pytest
import torch

from mechstudy.dictionaries.config import DictionaryConfig, TrainConfig
from mechstudy.dictionaries.dictionary import Dictionary, DictionaryMeta
from mechstudy.dictionaries.evaluation.synthetic import SyntheticWorld, WorldConfig, mean_correlation_coefficient, score
from mechstudy.dictionaries.training.trainer import train


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(WorldConfig(d=64, n_features=96, l0=4.0, spread=0.1), batch_size=2048)


def oracle(world: SyntheticWorld, encoder: torch.Tensor, threshold: float) -> Dictionary:
    d, n = world.cfg.d, len(encoder)
    meta = DictionaryMeta("sae", "jumprelu", d, d, n, None, "x", "x")
    bias = -(encoder @ world.offset_D)
    return Dictionary(
        meta, W_enc=encoder.T.contiguous(), b_enc=bias, W_dec=world.features_GD[:n].clone(), b_dec=world.offset_D,
        threshold=torch.full((n,), threshold),
    )  # fmt: skip


def test_rows_have_the_configured_l0_and_children_fire_only_with_parents(world):
    fires = world.sample(3, 20_000).strengths_NG > 0
    assert abs(fires.sum(1).double().mean() - 4.0) < 0.8
    has = world.parent_G >= 0
    assert has.double().mean() > 0.25
    assert not (fires[:, has] & ~fires[:, world.parent_G[has]]).any()


def test_a_row_is_the_sum_of_its_features_and_depends_on_its_step_alone(world):
    sample = world.sample(7)
    torch.testing.assert_close(sample.x_ND, sample.strengths_NG @ world.features_GD + world.offset_D)
    assert torch.equal(sample.x_ND, next(world.batches(7))[0])
    assert not torch.equal(sample.x_ND, world.sample(8).x_ND)


def test_features_fire_together_only_where_correlation_says_so():
    def largest(correlation: float) -> float:
        cfg = WorldConfig(d=16, n_features=12, l0=4, zipf=0, children=0, correlation=correlation, factors=2)
        fires = (SyntheticWorld(cfg).sample(0, 40_000).strengths_NG > 0).double()
        return float((torch.corrcoef(fires.T) - torch.eye(12)).abs().max())

    assert largest(0.0) < 0.03 < 0.1 < largest(0.6)


def test_mcc_is_one_for_the_true_features_in_any_order_and_sign(world):
    shuffled = -world.features_GD[torch.randperm(96, generator=torch.Generator().manual_seed(0))]
    assert mean_correlation_coefficient(shuffled, world.features_GD) == pytest.approx(1.0)
    random = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    assert mean_correlation_coefficient(random, world.features_GD) < 0.45
    half = torch.cat([world.features_GD[:48], world.features_GD[:48]])
    assert mean_correlation_coefficient(half, world.features_GD) < 0.75, "a feature is matched once"


def test_the_true_encoder_scores_far_above_a_random_one(world):
    inverse = torch.linalg.pinv(world.features_GD.double()).T.float()
    good = score(oracle(world, inverse, 0.5), world, n_rows=8192)
    bad = score(oracle(world, inverse.roll(1, 0), 0.5), world, n_rows=8192)
    assert good["mcc"] == pytest.approx(1.0) and good["uniqueness"] == 1.0
    assert good["f1"] > 0.5 and bad["f1"] < 0.2 < good["f1"] - 0.2
    assert good["fvu"] < bad["fvu"]


def test_a_dictionary_without_features_reconstructs_nothing(world):
    empty = score(oracle(world, world.features_GD, 1e6), world, n_rows=2048)
    assert empty["l0"] == empty["f1"] == empty["shrinkage"] == 0 and empty["dead_share"] == 1


def test_training_does_not_start_at_the_features_of_a_world_of_its_seed():
    world = SyntheticWorld(WorldConfig(d=32, n_features=64, l0=4.0, seed=3), batch_size=512)
    recipe = TrainConfig(steps=1, batch_size=512, lr=1e-9, seed=3, tensorboard=False, precision="float32")
    start = train(DictionaryConfig(kind="sae", d_sae=64, k=4), recipe, world)
    assert mean_correlation_coefficient(start.W_dec, world.features_GD) < 0.6
