"""Every way to name a model opens the same one; what cannot be opened is refused with what is accepted."""

from __future__ import annotations

import pytest
import torch

from mechstudy.core.errors import MechstudyError
from mechstudy.models.loading import load_model
from mechstudy.models.sources import full_source
from tests.support.tiny import save_tiny

TOKENS = torch.tensor([[5, 17, 200, 33, 9, 120]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Llama, and the folder that it was saved into."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_tiny(folder), folder


def test_a_source_a_bare_path_and_a_loaded_model_are_the_same_model(saved):
    original, folder = saved
    expected = original.forward(TOKENS).logits
    for source in (f"path:{folder}", str(folder), folder, f"path:{folder.name}"):
        model = load_model(source, base=folder.parent, device="cpu")
        torch.testing.assert_close(model.forward(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
        assert model.name == "tiny"
    loaded = load_model(original.hf, original.tokenizer)
    assert load_model(original.hf, original.tokenizer, name="mine").name == "mine"
    assert loaded.hf is original.hf and torch.equal(loaded.forward(TOKENS).logits, expected)


def test_a_model_prints_its_name_and_size(saved):
    text = repr(load_model(saved[1], device="cpu"))
    assert text.startswith("LanguageModel tiny: 3 layers, d_model 32, ") and text.endswith("float32 on cpu")


def test_dtype_and_device_of_a_source_are_those_asked_for(saved):
    model = load_model(saved[1], dtype="bfloat16", device="cpu")
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")
    assert load_model(saved[1], dtype="auto", device="cpu").dtype in (torch.bfloat16, torch.float32)


def test_a_model_is_validated_unless_asked_not_to(saved, monkeypatch):
    validated = []
    monkeypatch.setattr("mechstudy.models.loading.validate_model", validated.append)
    load_model(saved[1], device="cpu", validate=False)
    assert not validated
    model = load_model(saved[1], device="cpu")
    assert validated == [model]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float23"}, "did you mean 'float32'"),
        ({"device": "gpu"}, "'gpu' is not a device"),
        ({"device": "cuda:99"}, "there is no device cuda:99"),
        ({"tokenizer": object()}, "accepted only with a loaded model"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(saved, arguments, message):
    with pytest.raises(MechstudyError, match=message):
        load_model(saved[1], **arguments)


def test_an_attention_that_the_family_lacks_is_refused_with_those_that_it_has(tmp_path):
    save_tiny(tmp_path / "gemma", "gemma2")
    with pytest.raises(MechstudyError, match="Gemma 2 has no sdpa attention") as error:
        load_model(tmp_path / "gemma", attention="sdpa", device="cpu")
    assert "soft cap" in error.value.facts["reason"] and "eager" in error.value.facts["attention"]
    assert 'attention="auto"' in str(error.value.fix)
    assert load_model(tmp_path / "gemma", attention="eager", device="cpu").arch.name == "Gemma 2"


def test_a_misspelt_attention_has_the_nearest_as_its_fix(saved):
    with pytest.raises(MechstudyError, match="'spda' is no attention") as error:
        load_model(saved[1], attention="spda", device="cpu")
    assert error.value.fix == "attention='sdpa'"
    assert load_model(saved[1], attention="sdpa", device="cpu").hf.config._attn_implementation == "sdpa"


def test_a_loaded_model_without_its_tokenizer_is_refused(saved):
    with pytest.raises(MechstudyError, match="needs its tokenizer"):
        load_model(saved[0].hf)


@pytest.mark.parametrize("source", ["", "nowhere:x", "pypi:unknown==1", "path:no-such-folder"])
def test_a_source_that_is_none_is_an_error_with_a_fix(source):
    with pytest.raises(MechstudyError, match="fix:"):
        load_model(source)


def test_bare_names_stand_for_a_folder_then_a_file_then_a_hub_id(tmp_path):
    assert full_source("Qwen/Qwen2.5-3B@main", tmp_path) == "hf:Qwen/Qwen2.5-3B@main"
    (tmp_path / "Qwen" / "Qwen2.5-3B").mkdir(parents=True)
    (tmp_path / "model.gguf").touch()
    assert full_source("Qwen/Qwen2.5-3B", tmp_path) == f"path:{tmp_path}/Qwen/Qwen2.5-3B"
    assert full_source("model.gguf", tmp_path) == f"gguf:{tmp_path}/model.gguf"
    assert full_source("pypi:x==1", tmp_path) == "pypi:x==1"
    for wrong in ("nowhere", "/no/such/folder", tmp_path / "a" / "b"):
        with pytest.raises(MechstudyError, match="neither a model folder"):
            full_source(wrong, tmp_path)
