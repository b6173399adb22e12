"""Sizes of a model from its config alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import transformers

from mechstudy.core.errors import MechstudyError
from mechstudy.models.shapes import shapes_of
from tests.models.family_table import PAGE, page
from tests.support.tiny import ALL, tiny_config, tiny_model


@pytest.mark.parametrize("family", ALL)
def test_parameters_counted_from_the_config_are_those_of_the_model(family):
    model = tiny_model(family, dtype="float32")
    shapes = shapes_of(model.hf.config.to_dict())
    assert shapes.n_parameters == sum(p.numel() for p in model.hf.parameters())
    assert (shapes.n_layers, shapes.d_model, shapes.d_mlp) == (model.n_layers, model.d_model, model.d_mlp)
    assert shapes.vocab_size == model.vocab_size
    embedding = {id(p): p.numel() for p in (model.hf.get_input_embeddings().weight, model.unembedding.weight)}
    positions = model.base.wpe.weight.numel() if family == "gpt2" else 0
    assert shapes.n_embedding_parameters == sum(embedding.values()) + positions
    assert shapes.n_kv_heads * shapes.head_dim == model.blocks[0].attention_weights().value_GHD[..., 0].numel()


@pytest.mark.parametrize("family", ALL)
def test_a_config_file_that_omits_its_defaults_gives_the_same_sizes(family, tmp_path):
    config = tiny_config(family)
    config.save_pretrained(tmp_path)
    written = transformers.AutoConfig.from_pretrained(tmp_path)
    assert shapes_of(config.to_diff_dict() | {"model_type": config.model_type}) == shapes_of(written.to_dict())


@pytest.mark.parametrize("option", ["attention_bias", "mlp_bias", "tie_word_embeddings"])
def test_biases_and_tying_of_a_llama_are_counted(option):
    config = tiny_config("llama")
    setattr(config, option, True)
    model = transformers.AutoModelForCausalLM.from_config(config)
    shapes = shapes_of(config.to_dict())
    assert shapes.n_parameters == sum(p.numel() for p in model.parameters())
    assert shapes.tied == (option == "tie_word_embeddings")


def test_smollm2_has_its_134_515_008_parameters():
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    shapes = shapes_of(config)
    assert shapes.n_parameters == 134_515_008
    assert (shapes.head_dim, shapes.width("mlp_out"), shapes.width("mlp_act")) == (64, 576, 1536)


def test_an_unsupported_model_is_refused_with_what_is_supported():
    with pytest.raises(MechstudyError, match="'mamba' are not supported") as error:
        shapes_of({"model_type": "mamba"})
    assert "Gemma 2 (gemma2)" in str(error.value)


@pytest.mark.parametrize("value", [None, 0, -1, "576", 2.5, True])
def test_a_size_that_is_not_a_positive_integer_is_named(value):
    config = tiny_config("llama").to_dict() | {"hidden_size": value}
    with pytest.raises(MechstudyError, match="hidden_size should be a positive integer"):
        shapes_of(config)


@pytest.mark.process
def test_shapes_are_read_without_torch():
    code = "import sys, mechstudy.models.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_documented_table_is_the_family_table():
    assert PAGE.read_text() == page(), "run `python -m tests.models.family_table`"
