"""Whatever stands in a dictionary's files, reading it gives a dictionary or an error that says where and what to do."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from mechstudy.cli.app import app
from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer
from mechstudy.dictionaries.formats.cross_layer import read_clt, write_clt
from tests.support.dictionary_files import CLASSES, D, F, K, clt, draw, learned, transcoder
from tests.support.dictionary_worlds import random_dictionary

SAE = {"W_enc": draw(D, F, seed=1), "b_enc": draw(F, seed=2), "W_dec": draw(F, D, seed=3), "b_dec": draw(D, seed=4)}
GATED = {name: t for name, t in SAE.items() if name != "b_enc"}
GATED |= {"b_gate": draw(F, seed=5), "r_mag": draw(F, seed=6) / 2, "b_mag": draw(F, seed=7)}
Load = Callable[[Path], Any]


def saelens(architecture: str, tensors: dict[str, Tensor], **more: Any) -> Callable[[Path], Load]:
    def make(folder: Path) -> Load:
        save_file(tensors, folder / "sae_weights.safetensors")
        content = {"architecture": architecture, "d_in": D, "d_sae": F, "k": K, "apply_b_dec_to_input": True,
                   "normalize_activations": "none", "metadata": {"hook_name": "blocks.2.hook_resid_post"}}  # fmt: skip
        (folder / "cfg.json").write_text(json.dumps(content | more))
        return Dictionary.load

    return make


def checkpoint(folder: Path) -> Load:
    load = saelens("batchtopk", SAE | {"topk_threshold": torch.tensor(0.3, dtype=torch.float64)})(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 1.5, "has_whitening": True}))
    white = {"mean": draw(D, seed=8), "matrix": draw(D, D, seed=9), "inverse_matrix": draw(D, D, seed=10)}
    save_file(white, folder / "activation_whitening.safetensors")
    return load


def ours(folder: Path) -> Load:
    random_dictionary("skip_transcoder", "jumprelu", max_input_norm=9.5).save(folder)
    return Dictionary.load


def sparsify(folder: Path) -> Load:
    t = {"encoder.weight": draw(F, D, seed=1), "encoder.bias": draw(F, seed=2), "W_dec": SAE["W_dec"]}
    save_file(t | {"b_dec": SAE["b_dec"], "W_skip": draw(D, D, seed=5)}, folder / "sae.safetensors")
    content = {"activation": "topk", "num_latents": F, "k": K, "d_in": D, "transcode": True, "skip_connection": True}
    (folder / "cfg.json").write_text(json.dumps(content))
    return Dictionary.load


def dictionary_learning(name: str) -> Callable[[Path], Load]:
    def make(folder: Path) -> Load:
        torch.save(learned(name)[0], folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": K, "layer": 8}}))
        return Dictionary.load

    return make


def layers(folder: Path) -> Load:
    circuit_tracer.write_set({0: transcoder(0), 1: transcoder(1)}, folder, model_name="some/model")
    return circuit_tracer.read_set


def cross_layer(folder: Path) -> Load:
    write_clt(folder, **clt(True))
    return read_clt


def gemma_scope(folder: Path) -> Load:
    arrays = {name: tensor.numpy() for name, tensor in (SAE | {"threshold": draw(F, seed=5).abs()}).items()}
    np.savez(folder / "params.npz", **arrays)
    return Dictionary.load


def llama_scope(folder: Path) -> Load:
    (folder / "checkpoints").mkdir()
    t = {"encoder.weight": draw(F, D, seed=1), "encoder.bias": SAE["b_enc"], "decoder.weight": draw(D, F, seed=3)}
    save_file(t | {"decoder.bias": SAE["b_dec"]}, folder / "checkpoints" / "final.safetensors")
    content = {"act_fn": "jumprelu", "jump_relu_threshold": 0.5, "dataset_average_activation_norm": {"in": 2, "out": 3}}
    (folder / "hyperparams.json").write_text(
        json.dumps(content | {"top_k": K, "hook_point_in": "blocks.1.hook_mlp_out"})
    )
    return Dictionary.load


def llama_scope_2(folder: Path) -> Load:
    t = {"W_E": SAE["W_enc"], "b_E": SAE["b_enc"], "W_D": SAE["W_dec"], "b_D": SAE["b_dec"]}
    t |= {
        "dataset_average_activation_norm.x": torch.tensor(2.0),
        "dataset_average_activation_norm.y": torch.tensor(3.0),
    }
    save_file(t | {"activation_function.log_jumprelu_threshold": draw(F, seed=5)}, folder / "sae_weights.safetensors")
    content = {"sae_type": "sae", "act_fn": "jumprelu", "hook_point_in": "x", "hook_point_out": "y", "top_k": K}
    (folder / "config.json").write_text(json.dumps(content))
    return Dictionary.load


def gemma_scope_2(folder: Path) -> Load:
    t = {"w_enc": SAE["W_enc"], "b_enc": SAE["b_enc"], "w_dec": SAE["W_dec"], "b_dec": SAE["b_dec"]}
    save_file(t | {"threshold": draw(F, seed=5).abs()}, folder / "params.safetensors")
    content = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.5.output"}
    (folder / "config.json").write_text(json.dumps(content | {"affine_connection": False}))
    return Dictionary.load


FORMS: dict[str, Callable[[Path], Load]] = {
    "standard": saelens("standard", SAE),
    "gated": saelens("gated", GATED),
    "topk": saelens("topk", SAE, rescale_acts_by_decoder_norm=True),
    "abstopk": saelens("abstopk", SAE),
    "jumprelu_skip_transcoder": saelens(
        "jumprelu_skip_transcoder", SAE | {"threshold": draw(F, seed=5).abs(), "W_skip": draw(D, D, seed=6)}, d_out=D
    ),
    "checkpoint": checkpoint,
    "ours": ours,
    "sparsify": sparsify,
    **{name: dictionary_learning(name) for name in CLASSES},
    "set": layers,
    "clt": cross_layer,
    "gemma scope": gemma_scope,
    "gemma scope 2": gemma_scope_2,
    "llama scope": llama_scope,
    "llama scope 2": llama_scope_2,
}
WORDS = ("topk", "jumprelu", "gated", "abstopk", "batchtopk", "transcoder", "temporal", "layer_norm", "hook_z",
         "covariance_whitening", "blocks.1.hook_z", "../../x", "", "AutoEncoder", "\x00", "relu")  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**400) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("k", "metadata", "x")), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> dict[str, tuple[Path, Load]]:
    found = {}
    for name, make in FORMS.items():
        folder = tmp_path_factory.mktemp("form")
        found[name] = folder, make(folder)
    return found


def reads_or_explains(load: Load, folder: Path) -> str | None:
    """None where it was read, else what the error says. Anything but MechstudyError fails the test."""
    try:
        load(folder)
    except MechstudyError as error:
        assert error.where is not None and str(folder) in error.where, error
        assert error.fix, error
        assert len(str(error)) < 3000
        return error.what
    return None


def each(max_examples: int) -> Callable[[Any], Any]:
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    # The same examples every time: a change must not fail on what it has not touched. To search, raise the numbers.
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=slow, derandomize=True)


def test_the_examples_are_read(examples):
    for load, folder in ((load, folder) for folder, load in examples.values()):
        assert reads_or_explains(load, folder) is None


def copied(example: tuple[Path, Load]) -> tempfile.TemporaryDirectory[str]:
    scratch = tempfile.TemporaryDirectory()
    shutil.copytree(example[0], scratch.name, dirs_exist_ok=True)
    return scratch


@each(300)
@given(name=st.sampled_from(sorted(FORMS)), data=st.data())
def test_any_value_in_a_config_is_read_or_explained(name, data, examples):
    with copied(examples[name]) as scratch:
        configs = sorted(path for path in Path(scratch).iterdir() if path.suffix in (".json", ".yaml"))
        if not configs:
            return
        path = data.draw(st.sampled_from(configs))
        if path.suffix == ".yaml":
            field = data.draw(st.sampled_from(("model_kind", "activation", "k", "feature_input_hook", "model_name")))
            path.write_text(path.read_text() + f"\n{field}: {json.dumps(data.draw(JSON))}\n")
        else:
            content = json.loads(path.read_text())
            inside = content
            while nested := [key for key, value in inside.items() if isinstance(value, dict)]:
                if data.draw(st.booleans()):
                    break
                inside = inside[data.draw(st.sampled_from(nested))]
            keys = [*inside, "activation_fn", "hook_name", "scaling_factor", "activation_fn_kwargs"]
            inside[data.draw(st.sampled_from(keys))] = data.draw(JSON)
            path.write_text(json.dumps(content))
        reads_or_explains(examples[name][1], Path(scratch))


@each(100)
@given(name=st.sampled_from(sorted(FORMS)), data=st.data())
def test_any_text_as_a_config_is_read_or_explained(name, data, examples):
    with copied(examples[name]) as scratch:
        for path in Path(scratch).iterdir():
            if path.suffix in (".json", ".yaml"):
                deep = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"&a [*a]", b"{a: &b {c: *b}}"])
                path.write_bytes(data.draw(deep | st.binary(max_size=30) | JSON.map(lambda v: json.dumps(v).encode())))
        reads_or_explains(examples[name][1], Path(scratch))


@each(200)
@given(name=st.sampled_from(sorted(FORMS)), data=st.data())
def test_a_truncated_or_flipped_file_is_read_or_explained(name, data, examples):
    with copied(examples[name]) as scratch:
        path = data.draw(st.sampled_from(sorted(path for path in Path(scratch).rglob("*") if path.is_file())))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, min(len(content), 900) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        reads_or_explains(examples[name][1], Path(scratch))


HARMS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda t: None,
    "the wrong shape": lambda t: torch.cat([t.flatten(), t.flatten()[:1]]),
    "int64": lambda t: t.to(torch.int64),
    "no finite numbers": lambda t: t.flatten().index_fill(0, torch.tensor([0]), float("nan")).view_as(t),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", [name for name in FORMS if name not in (*CLASSES, "gemma scope")])
def test_every_tensor_that_is_missing_misshapen_whole_or_nan_is_named(name, harm, examples, tmp_path):
    source, load = examples[name]
    for weights in sorted(source.glob("*.safetensors")):
        for tensor in load_file(weights):
            folder = tmp_path / f"{weights.stem}-{tensor}"
            shutil.copytree(source, folder)
            tensors = load_file(weights)
            changed = HARMS[harm](tensors.pop(tensor))
            save_file(tensors | ({} if changed is None else {tensor: changed}), folder / weights.name)
            what = reads_or_explains(load, folder)
            if harm == "missing" and tensor in ("W_skip", circuit_tracer.THRESHOLD) and name == "set":
                continue  # a set without them is another, which is read
            if harm == "missing" and name == "clt" and tensor == "threshold_0":
                continue
            ours = {"w_enc": "W_enc", "w_dec": "W_dec"}.get(tensor, tensor)  # of Gemma Scope 2
            assert what is not None and harm in what and ours in what, (what, tensor)


@pytest.mark.parametrize("name", CLASSES)
def test_every_tensor_of_a_pickle_that_is_missing_or_nan_is_named(name, examples, tmp_path):
    source, load = examples[name]
    unused = ("k", "group_sizes", *(["threshold"] if name in ("AutoEncoderTopK", "BatchTopKSAE") else []))
    if name == "MatryoshkaBatchTopKSAE":
        unused += ("threshold",)
    for tensor in torch.load(source / "ae.pt", weights_only=True):
        for harm in ("missing", "no finite numbers"):
            if tensor in unused:
                continue
            folder = tmp_path / f"{harm}-{tensor}"
            shutil.copytree(source, folder)
            tensors = torch.load(source / "ae.pt", weights_only=True)
            changed = HARMS[harm](tensors.pop(tensor))
            torch.save(tensors | ({} if changed is None else {tensor: changed}), folder / "ae.pt")
            what = reads_or_explains(load, folder)
            assert what is not None and harm in what and tensor in what


# ------------------------------------------------------------------------------------------ hostile folders


class _Trap:
    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def test_no_pickle_is_executed_wherever_it_stands(examples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (source, load) in examples.items():
        for where in ("ae.pt", "trainer_state.pt", "sae_weights.safetensors", "params.npz", "cfg.json", "config.json"):
            folder = tmp_path / name / where
            shutil.copytree(source, folder)
            if where in ("cfg.json", "config.json") and not (folder / where).exists():
                continue
            (folder / where).write_bytes(pickle.dumps({"W_enc": _Trap(), "encoder.weight": _Trap()}))
            with contextlib.suppress(MechstudyError):
                load(folder)
    assert not list(tmp_path.rglob("sprung"))


def test_links_are_followed_and_broken_links_named(examples, tmp_path):
    source, _ = examples["topk"]
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in source.iterdir():  # as in the hub's cache
        (linked / path.name).symlink_to(path)
    (tmp_path / "folder").symlink_to(linked)
    assert reads_or_explains(Dictionary.load, tmp_path / "folder") is None
    for target in ("nowhere", "sae_weights.safetensors", "."):  # dangling, itself, a folder
        (linked / "sae_weights.safetensors").unlink()
        (linked / "sae_weights.safetensors").symlink_to(target)
        assert reads_or_explains(Dictionary.load, linked) is not None
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MechstudyError):
        Dictionary.load(tmp_path / "loop")


def test_saving_replaces_a_link_and_leaves_what_it_led_to(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    folder = tmp_path / "sae"
    folder.mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / name).symlink_to(precious)
    random_dictionary().save(folder)
    assert precious.read_text() == "mine" and Dictionary.load(folder).cfg.d_sae
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MechstudyError, match="cannot be written"):
        random_dictionary().save(tmp_path / "sae")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "sae").write_text("x")
    with pytest.raises(MechstudyError, match="cannot be written"):
        random_dictionary().save(tmp_path / "sae")


def test_the_command_line_exits_with_two_and_no_traceback(examples, tmp_path):
    source, _ = examples["standard"]
    for number, text in enumerate(("", "[]", "{", '{"architecture": "temporal"}', '{"architecture": []}', "null")):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        (folder / "cfg.json").write_text(text)
        result = CliRunner().invoke(app, ["dictionary", "show", str(folder)])
        assert isinstance(result.exception, SystemExit) and result.exit_code == 2
        assert result.output.startswith("error: ") and "Traceback" not in result.output and "fix:" in result.output
