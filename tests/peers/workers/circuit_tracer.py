"""circuit-tracer: sets of transcoders and cross-layer transcoders, made, saved, loaded and computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, load_transcoder_set

from tests.peers.workers.serve import answer, randomise, rows, serve

CPU = torch.device("cpu")


def make_set(folder: str, layers: int, d: int, width: int, jumps: bool, skip: bool, seed: int = 0) -> None:
    for layer in range(layers):
        activation: Any = JumpReLU(torch.zeros(width), 0.1) if jumps else torch.nn.functional.relu
        made = SingleLayerTranscoder(d, width, activation, layer, skip, device=CPU, dtype=torch.float32)
        randomise(made, seed + layer)
        made.to_safetensors(str(Path(folder) / f"layer_{layer}.safetensors"))
    config = {"model_kind": "transcoder_set", "model_name": "some/model", "scan": "s"}
    config |= {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
    (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))


def compute_set(folder: str) -> dict[str, Any]:
    """Of every layer's rows, which lie in folders of their own."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    paths = {layer: str(path) for layer, path in enumerate(sorted(Path(folder).glob("layer_*.safetensors")))}
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook")}
    found = load_transcoder_set(paths, scan=config["scan"], **hooks, device=CPU, dtype=torch.float32)
    for layer, transcoder in enumerate(found):
        x = rows(f"{folder}/rows_{layer}")
        features = transcoder.encode(x)
        answer(f"{folder}/rows_{layer}", features, transcoder.decode(features, x))
    return config


def make_clt(folder: str, layers: int, d: int, width: int, jumps: bool, seed: int = 0) -> None:
    activation = "jump_relu" if jumps else "relu"
    clt = CrossLayerTranscoder(layers, width, d, activation, lazy_decoder=False, device=CPU, dtype=torch.float32)
    randomise(clt, seed)
    clt.to_safetensors(folder)
    config = {"model_kind": "cross_layer_transcoder", "model_name": "some/model", "scan": "s"}
    config |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))
    compute_clt(folder)


def compute_clt(folder: str) -> dict[str, Any]:
    """Rows [L, N, d] flattened, so that every layer reads its own."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    clt = load_clt(folder, lazy_decoder=False, device=CPU, dtype=torch.float32)
    x = rows(folder).unflatten(0, (clt.n_layers, -1))
    features = clt.encode(x)
    answer(folder, features.flatten(0, 1), clt.decode(features).flatten(0, 1))
    return config


if __name__ == "__main__":
    serve(make_set=make_set, compute_set=compute_set, make_clt=make_clt, compute_clt=compute_clt)
