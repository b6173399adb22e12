"""SAELens: makes small models of any architecture, saves them, and computes what they compute."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

from tests.peers.workers.serve import answer, randomise, rows, serve


def registry() -> dict[str, list[str]]:
    return {"inference": sorted(SAE_CLASS_REGISTRY), "training": sorted(SAE_TRAINING_CLASS_REGISTRY)}


def make(folder: str, architecture: str, options: dict[str, Any], seed: int = 0) -> None:
    """A final model, saved by SAELens, and its answers on the rows there."""
    sae_class, config_class = SAE_CLASS_REGISTRY[architecture]
    hook = "blocks.2.attn.hook_z" if options.get("reshape_activations") == "hook_z" else "blocks.2.hook_mlp_out"
    metadata = SAEMetadata(model_name="some/model", hook_name=hook)
    sae = sae_class(config_class(**options, metadata=metadata))
    randomise(sae, seed)
    sae.save_model(folder)
    compute(folder, sae)


def make_checkpoint(
    folder: str, architecture: str, options: dict[str, Any], scale: float | None, whiten: bool, seed: int = 0
) -> None:
    """A training checkpoint with its scaler, and the answers of the final model that SAELens makes of it."""
    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    sae = sae_class(config_class(**options))
    randomise(sae, seed)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.7)
    scaler = ActivationScaler(scaling_factor=scale)
    d = options["d_in"]
    if whiten:
        generator = torch.Generator().manual_seed(seed + 1)
        matrix = torch.eye(d).double() + 0.1 * torch.randn(d, d, generator=generator, dtype=torch.float64)
        mean = torch.randn(d, generator=generator, dtype=torch.float64)
        scaler.whitening = ActivationWhitening(mean, matrix, torch.linalg.inv(matrix))
    sae.save_model(folder)
    scaler.save(f"{folder}/activation_scaler.json")
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    if whiten:
        w = scaler.whitening
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)
    sae.save_inference_model(f"{folder}/final")
    compute(folder, SAE.load_from_disk(f"{folder}/final"))


def load(folder: str) -> dict[str, Any]:
    """SAELens loads what is there."""
    sae = SAE.load_from_disk(folder)
    compute(folder, sae)
    return {"class": type(sae).__name__, "hook": sae.cfg.metadata.hook_name, "out": sae.cfg.metadata.hook_name_out}


def refuses(folder: str) -> str:
    """The error that loading gives, or nothing."""
    try:
        SAE.load_from_disk(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def compute(folder: str, sae: Any) -> None:
    sae.eval()
    x = rows(folder)
    if sae.cfg.reshape_activations == "hook_z":
        x = x.unflatten(-1, (4, -1))
    answer(folder, sae.encode(x), sae(x).reshape(len(x), -1))


if __name__ == "__main__":
    serve(registry=registry, make=make, make_checkpoint=make_checkpoint, load=load, refuses=refuses)
