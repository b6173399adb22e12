"""circuit-tracer: sets of transcoders and cross-layer transcoders, made, saved, loaded and computed; its graphs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
import transformers
import yaml
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, load_transcoder_set
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights

from tests.peers.workers.serve import answer, randomise, rows, serve

CPU = torch.device("cpu")
# Of the hub's older client: circuit-tracer's graphs import it, and the newer client has nothing to switch.
vars(huggingface_hub.constants).setdefault("HF_HUB_ENABLE_HF_TRANSFER", False)


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
    found, config = load_set(folder)
    for layer, transcoder in enumerate(found):
        x = rows(f"{folder}/rows_{layer}")
        features = transcoder.encode(x)
        answer(f"{folder}/rows_{layer}", features, transcoder.decode(features, x))
    return config


def load_set(folder: str) -> tuple[Any, dict[str, Any]]:
    """The set and its config."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    files = sorted(Path(folder).glob("layer_*.safetensors"), key=lambda path: int(path.stem.removeprefix("layer_")))
    paths = {layer: str(path) for layer, path in enumerate(files)}
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook")}
    return load_transcoder_set(paths, scan=config["scan"], **hooks, device=CPU, dtype=torch.float32), config


def make_clt(folder: str, layers: int, d: int, width: int, jumps: bool, seed: int = 0) -> None:
    activation = "jump_relu" if jumps else "relu"
    clt = CrossLayerTranscoder(layers, width, d, activation, lazy_decoder=False, device=CPU, dtype=torch.float32)
    randomise(clt, seed)
    clt.to_safetensors(folder)
    config = {"model_kind": "cross_layer_transcoder", "model_name": "some/model", "scan": "s"}
    config |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config))


def compute_clt(folder: str) -> dict[str, Any]:
    """Rows [L, N, d] flattened, so that every layer reads its own."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    clt = load_clt(folder, lazy_decoder=False, device=CPU, dtype=torch.float32)
    x = rows(folder).unflatten(0, (clt.n_layers, -1))
    features = clt.encode(x)
    answer(folder, features.flatten(0, 1), clt.decode(features).flatten(0, 1))
    return config


def graph(
    model: str, dictionaries: str, tokens: list[int], n_features: int, n_logits: int, out: str
) -> dict[str, float]:
    """The graph of a prompt of a Llama, from its folder and that of a set or a CLT; its seconds and scores."""
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.graph import compute_graph_scores, prune_graph

    kind = yaml.safe_load((Path(dictionaries) / "config.yaml").read_text())["model_kind"]
    if kind == "transcoder_set":
        transcoders, _ = load_set(dictionaries)
    else:
        transcoders = load_clt(
            dictionaries,
            feature_input_hook="hook_resid_mid",
            feature_output_hook="hook_mlp_out",
            lazy_decoder=False,
            device=CPU,
            dtype=torch.float32,
        )
    replacement = replacement_model(model, transcoders)
    began = time.perf_counter()
    with torch.enable_grad():
        found = attribute(
            torch.tensor(tokens),
            replacement,
            max_n_logits=n_logits,
            desired_logit_prob=1.0,
            max_feature_nodes=n_features,
            batch_size=64,
        )
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    prune_graph(found)
    replacement, completeness = compute_graph_scores(found)
    pruning = time.perf_counter() - began
    tensors = {
        "adjacency": found.adjacency_matrix,
        "active": found.active_features,
        "selected": found.selected_features,
        "logits": torch.tensor([target.vocab_idx for target in found.logit_targets]),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)
    return {"seconds": seconds, "pruning": pruning, "replacement": replacement, "completeness": completeness}


def replacement_model(folder: str, transcoders: Any) -> Any:
    """circuit-tracer's model of a Llama that lies in a folder; it can only name those of the hub."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel

    llama = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    c = llama.config
    config = HookedTransformerConfig(
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        d_head=c.head_dim or c.hidden_size // c.num_attention_heads,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        n_ctx=128,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=c.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=c.head_dim or c.hidden_size // c.num_attention_heads,
        rotary_base=int(c.rope_parameters["rope_theta"]),
        original_architecture="LlamaForCausalLM",
        model_name="llama",
        dtype=torch.float32,
        device="cpu",
    )
    model = TransformerLensReplacementModel(config)
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    weights = convert_llama_weights(llama, config)
    model.load_and_process_state_dict(weights, fold_ln=False, center_writing_weights=False, center_unembed=False)
    model._configure_replacement_model(transcoders)
    return model


if __name__ == "__main__":
    serve(make_set=make_set, compute_set=compute_set, make_clt=make_clt, compute_clt=compute_clt, graph=graph)
