"""Configs of well-known models have the numbers of parameters that their publishers state."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.models.folder import read_config
from mechstudy.models.known import known_config, known_models, same_model, similar_models
from mechstudy.models.local_files import WHEEL_MODELS, config_without_fetching, local_folder
from mechstudy.models.shapes import shapes_of
from mechstudy.models.sources import resolve_source

# As counted by the hub from each model's safetensors (tied embeddings once).
PARAMETERS = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}
# Published with their vision tower, which is the same in all three, and a projector of 1,152 x width and a norm.
MULTIMODAL = {"4b": 4_300_079_472, "12b": 12_187_325_040, "27b": 27_432_406_640}
VISION_TOWER = 416_866_032


@pytest.mark.parametrize("repo", PARAMETERS)
def test_the_config_has_the_published_number_of_parameters(repo):
    config = known_config(repo)
    assert config is not None
    assert shapes_of(config).n_parameters == PARAMETERS[repo]


@pytest.mark.parametrize("size", MULTIMODAL)
def test_gemma_3_has_its_published_parameters_without_the_vision_part(size):
    config = known_config(f"google/gemma-3-{size}-it")
    assert config is not None
    shapes = shapes_of(config)
    projector = 1152 * shapes.d_model + 1152
    assert shapes.n_parameters + projector + VISION_TOWER == MULTIMODAL[size]


def test_every_known_model_is_compared_with_a_published_number():
    compared = [known_config(repo) for repo in PARAMETERS] + [
        known_config(f"google/gemma-3-{s}-it") for s in MULTIMODAL
    ]
    assert all(known_config(repo) in compared for repo in known_models())


def test_an_unknown_model_has_no_config_and_case_does_not_matter():
    assert known_config("Qwen/Qwen9-3B") is None
    assert known_config("qwen/qwen2.5-3b") == known_config("Qwen/Qwen2.5-3B")


def test_a_known_model_of_the_hub_is_planned_without_the_network(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    config = config_without_fetching("hf:Qwen/Qwen2.5-3B-Instruct@main", Path())
    assert config is not None and shapes_of(config).n_layers == 36


def test_a_folder_with_a_config_and_no_weights_can_be_planned(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert local_folder(f"path:{tmp_path}", Path()) is None
    assert config_without_fetching(f"path:{tmp_path}", Path()) == {"model_type": "llama"}


@pytest.mark.real
def test_the_model_of_a_wheel_has_the_sizes_of_the_known_one():
    for wheel, repo in WHEEL_MODELS.items():
        folder, config = local_folder(f"pypi:{wheel}", Path()), known_config(repo)
        if folder is None:
            pytest.skip(f"{wheel} is not fetched")
        assert config is not None and shapes_of(read_config(folder)) == shapes_of(config)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("meta-llama/Llama-3-8B", ["meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"]),
        ("qwen2.5-3B-instruct", ["Qwen/Qwen2.5-3B-Instruct"]),
        ("google/gemma2-9b", ["google/gemma-2-9b"]),
        ("nobody/something-else", []),
    ],
)
def test_a_wrong_id_suggests_similar_known_ones(wrong, meant):
    assert similar_models(wrong) == meant


def test_an_unreachable_hub_is_reported_once_with_similar_models(monkeypatch, caplog):
    def fails(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 5/5].")
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(MechstudyError, match="cannot be fetched") as error:
        resolve_source("hf:meta-llama/Llama-3-8B")
    assert "did you mean hf:meta-llama/Meta-Llama-3-8B or" in (error.value.fix or "")
    assert "there is no" in error.value.facts["folder"] and "plan" not in error.value.facts
    assert "Retry" not in caplog.text


@pytest.mark.parametrize(("other", "same"), [("qwen3_4b", True), ("Qwen/Qwen3-4B-Base", False)])
def test_names_of_one_model_are_recognised(other, same):
    assert same_model("Qwen/Qwen3-4B", other) is same


def test_the_id_that_was_typed_is_not_suggested(monkeypatch):
    def fails(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(MechstudyError, match="cannot be fetched") as error:
        resolve_source("hf:Qwen/Qwen3-0.6B")
    assert "did you mean" not in (error.value.fix or "") and "can size a study" in error.value.facts["plan"]
