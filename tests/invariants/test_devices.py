"""The same tiny study in float32 on each device: its numbers are those of the CPU in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import mechstudy as ms
from tests.support.interventions_world import transcoder
from tests.support.tiny import tiny_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
FAMILIES = ("llama", "gemma2")


@dataclass(frozen=True)
class Numbers:
    logits: torch.Tensor
    activations: torch.Tensor
    scores: dict[str, float]
    features: list[float]


def numbers(family: str, device: str, dtype: str) -> Numbers:
    """What captures, graphs and features of one prompt are on a device, as float64 on the CPU."""
    model = tiny_model(family, dtype)
    model.hf.to(device)
    dictionaries = {layer: transcoder(model.d_model, layer).to(device, model.dtype) for layer in (0, 2)}
    tokens = torch.tensor([model.encode("the keys of")], device=device)
    sites = [ms.Site("resid_post", 1), ms.Site("mlp_in", 2)]
    with torch.no_grad():
        output = model.forward(tokens, capture=sites)
        x = output.activations[sites[1]]
        features = dictionaries[2].encode(x).sum(dim=(0, 1))
    graph = ms.attribute(model, dictionaries, "the keys", answer="x", wrong_answer="y")
    return Numbers(
        logits=output.logits.double().cpu(),
        activations=torch.cat([output.activations[s].double().cpu() for s in sites]),
        scores=graph.scores(),
        features=features.double().cpu().tolist(),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_device_gives_the_numbers_of_the_cpu_in_float64(device, family):
    measured, exact = numbers(family, device, "float32"), numbers(family, "cpu", "float64")
    torch.testing.assert_close(measured.logits, exact.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(measured.activations, exact.activations, rtol=1e-4, atol=1e-4)
    assert measured.features == pytest.approx(exact.features, rel=1e-3, abs=1e-3)
    assert measured.scores == pytest.approx(exact.scores, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_training_on_a_device_follows_the_cpu_in_its_first_steps(device):
    """Float32 on both; after a few steps roundings decide which features are among the k largest."""
    rows = torch.randn(4_096, 32, generator=torch.Generator().manual_seed(0))
    config = ms.DictionaryConfig(kind="sae", d_sae=128, activation="topk", k=8)

    def trained(on: str) -> torch.Tensor:
        sae = ms.train(rows.to(on), config, ms.TrainConfig(steps=4, batch_size=512, lr=1e-3), device=on)
        return sae.decode(sae.encode(rows[:64].to(on))).detach().cpu()

    torch.testing.assert_close(trained(device), trained("cpu"), rtol=1e-2, atol=1e-3)
