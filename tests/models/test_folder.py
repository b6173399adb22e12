"""Model folders as people have them: what cannot be used is named, before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mechstudy.core.errors import MechstudyError
from mechstudy.models.folder import check_folder, hub_revision, model_name
from mechstudy.models.loading import load_model
from mechstudy.models.local_files import cache_defect, config_without_fetching, local_folder
from mechstudy.models.sources import resolve_source
from tests.support.hub_cache import put_in_hub_cache
from tests.support.tiny import tiny_model

HEADER = (2).to_bytes(8, "little") + b"{}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    model = tiny_model("llama", dtype="float32")
    model.hf.save_pretrained(folder, max_shard_size="20KB")
    model.tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def refusal(folder: Path) -> str:
    """The error of a plan and of a load, which say the same."""
    messages = []
    for call in (lambda: local_folder(f"path:{folder}", Path()), lambda: load_model(folder, device="cpu")):
        with pytest.raises(MechstudyError) as error:
            call()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    return messages[0]


def set_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("quantised", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "of-tomorrow"}, "of-tomorrow"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
    ],
)
def test_a_quantised_checkpoint_is_refused_before_its_weights_are_read(folder, quantised, method):
    set_config(folder, quantization_config=quantised)
    message = refusal(folder)
    assert f"the weights are quantised ({method})" in message and "use the unquantised model" in message
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(MechstudyError, match="quantised"):  # a plan of a config alone
        config_without_fetching(f"path:{folder}", Path())


def test_a_folder_without_a_tokenizer_is_refused(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    assert "holds no tokenizer (tokenizer.json)" in refusal(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    assert "copy tokenizer.json" in refusal(folder)


def test_a_tokenizer_without_a_vocabulary_is_refused(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": {"<|bos|>": 0}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(MechstudyError, match="knows no letters"):
        load_model(folder, device="cpu")


def shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def test_the_tokenizer_of_a_larger_vocabulary_is_refused(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"more{number}": 100_000 + number for number in range(1000)}
    path.write_text(json.dumps(content))
    with pytest.raises(MechstudyError, match="tokens, and the model's embedding"):
        load_model(folder, device="cpu")


def test_an_added_token_without_an_embedding_is_refused_where_it_occurs(folder):
    model = load_model(folder, device="cpu")
    more = 1 + model.vocab_size - len(model.tokenizer)
    model.tokenizer.add_tokens([f"<image{number}>" for number in range(more)], special_tokens=True)
    model.tokenizer.save_pretrained(folder)
    model = load_model(folder, device="cpu")
    assert model.encode("The cat")
    with pytest.raises(MechstudyError, match=f"token '<image{more - 1}>' has no row in the embedding"):
        model.encode(f"The <image{more - 1}>")


def test_a_dangling_link_names_its_target(folder):
    path = shard(folder)
    path.unlink()
    path.symlink_to("/purged/blob")
    message = refusal(folder)
    assert (
        f"{path.name} is a link to /purged/blob, which is not there" in message and "fetch the model again" in message
    )


def test_a_link_to_itself_is_no_file(folder):
    path = shard(folder)
    path.unlink()
    path.symlink_to(path.name)
    assert f"{path.name} is a link to {path.name}" in refusal(folder)


def test_a_dangling_config_is_named(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("gone.json")
    assert "config.json is a link to gone.json" in refusal(folder)


def test_a_folder_called_like_weights_is_no_file(folder):
    (folder / "backup.safetensors").mkdir()
    assert "backup.safetensors is a folder" in refusal(folder)


def test_a_missing_shard_is_named(folder):
    path = shard(folder)
    path.unlink()
    assert f"{path.name} is missing" in refusal(folder)


def test_a_broken_index_is_named(folder):
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json cannot be read" in refusal(folder)


def test_a_quantised_language_model_in_a_larger_one_is_refused(folder):
    set_config(folder, text_config={"quantization_config": {"quant_method": "awq", "bits": 4}})
    assert "the weights are quantised (awq)" in refusal(folder)


def test_mlx_quantisation_is_refused(folder):
    set_config(folder, quantization={"group_size": 64, "bits": 4})
    assert "the weights are quantised (4 bits)" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("x.qweight", torch.int32), ("x.weight", torch.uint8), ("x.weight", torch.float8_e4m3fn),
     ("x.weight_packed", torch.int32)],
)  # fmt: skip
def test_packed_weights_are_refused_where_the_config_says_nothing(folder, name, dtype):
    save_file({name: torch.zeros(4, 4).to(dtype)}, folder / "more.safetensors")
    message = refusal(folder)
    assert f"the weights are quantised ({name} is " in message and "more.safetensors" in message


def test_a_mask_of_whole_numbers_is_no_quantised_weight(folder):
    save_file({"attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}, folder / "more.safetensors")
    check_folder(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_a_small_file_that_is_a_dangling_link_is_named(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/scratch/purged/blob")
    assert f"{name} is a link to /scratch/purged/blob, which is not there" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{broken", "[]", ""])
def test_a_small_file_that_is_no_json_object_is_named(folder, name, content):
    (folder / name).write_text(content)
    assert f"{name} cannot be read as JSON" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_that_is_a_dangling_link_is_named_where_it_is_the_only_one(folder, name):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / name).symlink_to("../../blobs/tok")
    assert f"{name} is a link to ../../blobs/tok, which is not there" in refusal(folder)


def without_tokenizer_json(folder: Path) -> dict[str, int]:
    """Deletes the tokenizer's file, and returns its vocabulary."""
    path = folder / "tokenizer.json"
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    path.unlink()
    return vocabulary


def test_a_vocabulary_without_its_merges_is_named_before_anything_is_loaded(folder):
    (folder / "vocab.json").write_text(json.dumps(without_tokenizer_json(folder)))
    message = refusal(folder)
    assert "merges.txt is missing, without which vocab.json is no tokenizer" in message
    assert "fix:" in message and "copy tokenizer.json" in message
    (folder / "merges.txt").symlink_to("../../blobs/gone")
    assert "merges.txt is a link to ../../blobs/gone" in refusal(folder)


def test_merges_without_their_vocabulary_are_named(folder):
    without_tokenizer_json(folder)
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    assert "vocab.json is missing, without which merges.txt is no tokenizer" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b'{"a": 1', "vocab.json is not JSON, or it is truncated"),
        ("tokenizer.model", b"<!doctype html>", "tokenizer.model is no SentencePiece model, or it is truncated"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0e\n", "or it is truncated"),
        ("tokenizer.model", b"", "tokenizer.model is empty"),
        ("tekken.json", b"[1]", "tekken.json is not JSON"),
    ],
)
def test_a_broken_tokenizer_that_is_the_only_one_is_named(folder, name, content, message):
    without_tokenizer_json(folder)
    (folder / name).write_bytes(content)
    assert message in refusal(folder) and "fetch or copy it again" in refusal(folder)


PIECES = b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02" + b"\n\x08\n\x01a\x15\0\0\0\0"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.model", PIECES + b"\x12\x02\x18\x02"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),
        ("vocab.txt", b"a\n"),
    ],
)
def test_a_whole_tokenizer_of_another_kind_is_left_to_transformers(folder, name, content):
    without_tokenizer_json(folder)
    (folder / name).write_bytes(content)
    check_folder(folder)


def test_tokenizer_json_makes_what_is_beside_it_unimportant(folder):
    (folder / "tokenizer.model").write_bytes(b"<!doctype html>")
    (folder / "vocab.json").write_text("{}")
    check_folder(folder)
    assert load_model(folder, device="cpu").encode("cat")


def test_a_tokenizer_that_transformers_cannot_load_has_a_fix(folder):
    (folder / "tokenizer.json").write_text('{"added_tokens": []}')
    with pytest.raises(MechstudyError, match="the tokenizer cannot be loaded") as error:
        load_model(folder, device="cpu")
    assert "copy tokenizer.json" in str(error.value) and "tokenizer.json" in error.value.facts["files"]


def test_a_folder_that_may_not_be_entered_is_named(folder, monkeypatch):
    """Root may enter every folder, so what the system says is replaced."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    for use in (lambda: local_folder(f"path:{folder}", Path()), lambda: load_model(folder)):
        with pytest.raises(MechstudyError, match="the folder cannot be read: Permission denied") as error:
            use()
        assert "chmod u+rx" in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model-00002"])
def test_a_pointer_of_git_lfs_is_not_the_file(folder, name):
    path = next(folder.glob(f"{name}*"))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert f"{path.name} is a pointer of Git LFS" in refusal(folder)


def test_an_adapter_is_no_model(folder, tmp_path):
    adapter = {"base_model_name_or_path": "acme/base", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    assert "an adapter" in refusal(folder)
    alone = tmp_path / "adapter"
    alone.mkdir()
    (alone / "adapter_config.json").write_text(json.dumps(adapter))
    (alone / "adapter_model.safetensors").write_bytes(HEADER)
    message = refusal(alone)
    assert "an adapter" in message and "acme/base" in message and "merge" in message


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    import huggingface_hub.constants

    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home


def test_a_filtered_download_in_the_hub_cache_is_the_model(saved, cache):
    target = put_in_hub_cache(cache, saved, "acme/tiny-lm", "a" * 40)
    for source in ("hf:acme/tiny-lm", f"hf:acme/tiny-lm@{'a' * 40}"):
        assert local_folder(source, Path()) == target
    model = load_model("hf:acme/tiny-lm", device="cpu")
    assert model.name == "acme/tiny-lm" and hub_revision(target) == "a" * 40


def test_a_commit_may_be_abbreviated_where_only_one_begins_so(saved, cache):
    target = put_in_hub_cache(cache, saved, "acme/tiny-lm", "abcdef0" + "1" * 33)
    assert local_folder("hf:acme/tiny-lm@abcdef0", Path()) == target == resolve_source("hf:acme/tiny-lm@abcdef0")
    put_in_hub_cache(cache, saved, "acme/tiny-lm", "abcdef0" + "2" * 33)
    assert local_folder("hf:acme/tiny-lm@abcdef0", Path()) is None
    assert local_folder("hf:acme/tiny-lm@abcdef01", Path()) == target


@pytest.mark.parametrize("name", ["acme/tiny-lm/", " acme/tiny-lm", "a/b/c", "acme/-x"])
def test_a_name_that_no_repository_has_is_refused(cache, name):
    assert local_folder(f"hf:{name}", Path()) is None
    with pytest.raises(MechstudyError, match="does not accept this name"):
        resolve_source(f"hf:{name}")


def test_a_snapshot_without_its_weights_is_not_the_model(saved, cache):
    target = put_in_hub_cache(cache, saved, "acme/tiny-lm", "a" * 40)
    for path in target.glob("*.safetensors"):
        path.unlink()
    assert local_folder("hf:acme/tiny-lm", Path()) is None


@pytest.fixture
def dangling(saved, cache) -> Path:
    """A shard of a snapshot in the hub's cache, whose blob is gone."""
    path = shard(put_in_hub_cache(cache, saved, "acme/tiny-lm", "a" * 40))
    path.unlink()
    path.symlink_to("../../blobs/gone")
    return path


def test_a_snapshot_whose_blob_is_gone_is_refused_by_name_at_once_where_the_hub_is_not_asked(dangling):
    for use in (lambda: local_folder("hf:acme/tiny-lm", Path()), lambda: load_model("hf:acme/tiny-lm")):
        with pytest.raises(MechstudyError, match=r"is a link to \.\./\.\./blobs/gone") as error:
            use()
        assert "HF_HUB_OFFLINE" in str(error.value) and "where there is a network" in str(error.value)


def test_a_snapshot_whose_blob_is_gone_is_fetched_again_where_the_hub_is_asked(dangling, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert local_folder("hf:acme/tiny-lm", Path()) is None
    defect = cache_defect("hf:acme/tiny-lm")
    assert defect is not None and f"{dangling.name} is a link to" in defect.what


def test_a_model_of_which_nothing_is_cached_has_no_defect(saved, cache):
    assert cache_defect("hf:acme/tiny-lm") is None
    target = put_in_hub_cache(cache, saved, "acme/tiny-lm", "a" * 40)
    assert cache_defect("hf:acme/tiny-lm") is None and cache_defect(f"path:{target}") is None


def test_a_path_into_the_hub_cache_has_the_repositorys_name(saved, cache, tmp_path):
    target = put_in_hub_cache(cache, saved, "acme/tiny-lm", "c" * 40)
    link = tmp_path / "current-model"
    link.symlink_to(target)
    assert model_name(target) == model_name(link) == "acme/tiny-lm"
    assert model_name(put_in_hub_cache(cache, saved, "gpt2", "d" * 40)) == "gpt2"
    assert model_name(saved) == "tiny" and hub_revision(saved) is None
    check_folder(link)
