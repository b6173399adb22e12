"""Push and pull against a hub that is a folder: what is asked of the client, what is fetched, what the card says."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from mechstudy.core.errors import MechstudyError
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.dictionaries.formats import circuit_tracer, hub
from mechstudy.dictionaries.formats.card import escaped, model_card
from mechstudy.dictionaries.formats.cross_layer import write_clt
from tests.support.dictionary_files import clt, transcoder
from tests.support.dictionary_worlds import random_dictionary, rows
from tests.support.toy_model import mechstudy

# The HTTP client that this version of the hub's client is built on.
httpx = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])


class FakeHub:
    """Repositories are folders `root/owner/name/revision`; the methods are those of HfApi that push and pull use."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.fails = root, [], None

    def folder(self, repo: str, revision: str | None) -> Path:
        return self.root / "there" / repo / (revision or "main")

    def api(self, token: str | None = None) -> FakeHub:
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo: str, *, private: bool | None, repo_type: str, exist_ok: bool) -> None:
        self._fail()
        self.calls.append(("create", repo, private))
        self.folder(repo, None).mkdir(parents=True, exist_ok=exist_ok)

    def create_branch(self, repo: str, *, branch: str, repo_type: str, exist_ok: bool) -> None:
        self.folder(repo, branch).mkdir(parents=True, exist_ok=exist_ok)

    def file_exists(self, repo: str, name: str, *, revision: str | None, repo_type: str) -> bool:
        return (self.folder(repo, revision) / name).exists()

    def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
        there = self.folder(repo, revision)
        return [str(path.relative_to(there)) for path in sorted(there.rglob("*")) if path.is_file()]

    def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: str, revision: str | None,
                      commit_message: str) -> SimpleNamespace:  # fmt: skip
        shutil.copytree(folder_path, self.folder(repo_id, revision), dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")

    def snapshot_download(
        self, repo: str, *, revision: str | None, allow_patterns: list[str], token: str | None
    ) -> str:
        """As the real one: a cache of links to blobs, and the real rule for patterns."""
        self._fail()
        snapshot = self.root / "cache" / repo / (revision or "main")
        for name in filter_repo_objects(self.list_repo_files(repo, revision=revision), allow_patterns=allow_patterns):
            self.calls.append(("fetched", name))
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.folder(repo, revision) / name)
        snapshot.mkdir(parents=True, exist_ok=True)
        return str(snapshot)

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeHub:
    found = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", found.api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", found.snapshot_download)
    return found


@pytest.mark.parametrize("inside", ["", "layer_3", "saes/layer_3"])
@pytest.mark.parametrize("revision", [None, "v2"])
def test_what_is_pushed_is_pulled_bit_for_bit(inside, revision, fake):
    dictionary = random_dictionary("skip_transcoder", "jumprelu", dtype=torch.float32, model_name="some/model")
    address = dictionary.push("me/saes", path_in_repo=inside, private=True, revision=revision, token="t")
    assert address.startswith("https://hub.example/me/saes") and ("create", "me/saes", True) in fake.calls
    place = "hf:me/saes" + (f"/{inside}" if inside else "") + (f"@{revision}" if revision else "")
    found = Dictionary.load(place)
    assert found.cfg == dictionary.cfg
    for name, tensor in dictionary.named_parameters():
        assert torch.equal(tensor, dict(found.named_parameters())[name])
    assert (fake.folder("me/saes", revision) / inside / "README.md").exists()


def test_pickles_code_and_other_folders_are_not_fetched(fake):
    random_dictionary(dtype=torch.float32).push("me/saes", path_in_repo="layer_3")
    there = fake.folder("me/saes", None)
    for name in ("layer_3/ae.pt", "layer_3/run.py", "layer_3/nested/sae_weights.safetensors", "layer_4/cfg.json"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("x")
    Dictionary.load("hf:me/saes/layer_3")
    fetched = {name for kind, name, *_ in fake.calls if kind == "fetched"}
    assert fetched == {"layer_3/cfg.json", "layer_3/sae_weights.safetensors"}


def test_one_layer_of_a_set_is_fetched_with_the_config_of_the_set(fake):
    circuit_tracer.write_set({0: transcoder(0), 1: transcoder(1)}, fake.folder("me/set", None), model_name="some/model")
    assert Dictionary.load("hf:me/set/layer_1.safetensors").cfg.site_in == "mlp_in.1"
    assert {name for kind, name, *_ in fake.calls if kind == "fetched"} == {"layer_1.safetensors", "config.yaml"}


def test_a_folder_without_a_dictionary_names_those_with_one(fake):
    random_dictionary(dtype=torch.float32).push("me/saes", path_in_repo="layer_3")
    with pytest.raises(MechstudyError, match="no dictionary at layer_9") as error:
        Dictionary.load("hf:me/saes/layer_9")
    assert error.value.facts["folders with one"] == "layer_3" and "ae.pt" in error.value.fix


def response(status: int):
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example"))


@pytest.mark.parametrize(
    "raised,what,fix",
    [
        (errors.GatedRepoError("403: ask", response=response(403)), "gated", "ask for access"),
        (
            errors.RepositoryNotFoundError("404", response=response(404)),
            "no such repository, or it is private",
            "check",
        ),
        (errors.RevisionNotFoundError("404", response=response(404)), "no such revision", "branch"),
        (errors.HfHubHTTPError("401", response=response(401)), "refuses this account", "hf auth login"),
        (errors.HfHubHTTPError("500", response=response(500)), "cannot be reached", "network"),
        (errors.LocalEntryNotFoundError("offline, and not in the cache"), "cannot be reached", "copy the folder"),
        (errors.LocalTokenNotFoundError("no token"), "refuses this account", "HF_TOKEN"),
        (httpx.ConnectError("name resolution"), "cannot be reached", "network"),
        (OSError(28, "No space left on device"), "cannot be reached", "network"),
    ],
)
def test_hub_errors_name_a_fix(raised, what, fix, fake):
    fake.fails = raised
    for attempt in (lambda: Dictionary.load("hf:me/saes/a"), lambda: random_dictionary().push("me/saes")):
        with pytest.raises(MechstudyError, match=what) as error:
            attempt()
        assert fix in error.value.fix and str(error.value).startswith("hf:me/saes")


@pytest.mark.parametrize(
    "place",
    ["hf:", "hf:saes", "hf:me/saes/../x", "hf:me/..", "hf:/etc/passwd", "hf:me/saes/a/../../b", "hf:me/saes//a",
     "hf:me/saes/a\\b", "hf:me/saes/-x", "hf:me/saes@", "hf:me/saes@../x", "hf:me/saes/a b", "hf:me/saes/*",
     "hf:me/saes/\n", "hf://me/saes", "hf:me/saes/.git"],
)  # fmt: skip
def test_unsafe_names_are_refused_before_any_request(place, fake):
    with pytest.raises(MechstudyError, match=r"names no repository|no revision"):
        Dictionary.load(place)
    with pytest.raises(MechstudyError, match=r"names no repository|no revision"):
        random_dictionary().push(place.removeprefix("hf:"))
    assert fake.calls == []


def test_a_folder_in_the_repository_name_is_refused_with_path_in_repo(fake):
    with pytest.raises(MechstudyError, match="names no repository") as error:
        random_dictionary().push("me/saes/layer_3")
    assert "path_in_repo" in error.value.fix


def test_saving_over_a_fetched_folder_leaves_the_cache_alone(fake):
    random_dictionary(dtype=torch.float32).push("me/saes", path_in_repo="layer_3")
    blob = fake.folder("me/saes", None) / "layer_3" / "cfg.json"
    before = blob.read_bytes()
    random_dictionary("sae", "jumprelu", dtype=torch.float32).save(hub.pull("hf:me/saes/layer_3"))
    assert blob.read_bytes() == before


def test_a_card_that_is_there_stays_unless_asked_otherwise(fake):
    card = fake.folder("me/saes", None) / "README.md"
    dictionary = random_dictionary(dtype=torch.float32)
    dictionary.push("me/saes")
    card.write_text("mine")
    dictionary.push("me/saes")
    assert card.read_text() == "mine"
    dictionary.push("me/saes", overwrite_card=True)
    assert card.read_text() != "mine"


# ------------------------------------------------------------------------------------------------- the card


def test_the_card_says_what_it_is_and_how_to_load_it():
    dictionary = random_dictionary("sae", "topk", model_name="some/model", max_input_norm=9.5)
    card = model_card(dictionary, "me/saes", "layer_3", None, {"fvu": 0.21234, "l0": 3, "health": [1]})
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "some/model" and "sparse-autoencoder" in front["tags"]
    for text in ('Dictionary.load("hf:me/saes/layer_3")', 'SAE.from_pretrained("me/saes", "layer_3")', "0.2123", "9.5"):
        assert text in card
    assert "health" not in card
    assert "SAELens has no class" in model_card(random_dictionary("skip_transcoder"), "me/saes", "a", None, {})
    assert "load_from_disk" in model_card(dictionary, "me/saes", "", None, {})


def test_hostile_values_stay_text():
    hostile = "x|\n---\n```\n<script>alert(1)</script> [a](http://b) `c` : # d ![e](f) *g* $h$"
    meta = random_dictionary(model_name=hostile).cfg
    from dataclasses import replace

    tensors = dict(random_dictionary().named_parameters())
    dictionary = Dictionary(replace(meta, site_out=hostile), **tensors)
    card = model_card(dictionary, "me/saes", "a", None, {hostile: hostile})
    _, front, body = card.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "tags"}
    assert "<script>" not in body and "](http" not in body.replace("\\]\\(", "")
    assert body.count("\n```python\n") == 1 and body.count("```") == 2
    assert all(line.replace("\\|", "").count("|") == 3 for line in body.splitlines() if line.startswith("|"))


def test_escaping_is_undone_by_a_markdown_reader():
    from markdown_it import MarkdownIt

    text = r"a_b*c*d [e](f) <g> `h` # i | j \ k ![l](m) 1. n & o ~p~"
    [paragraph] = [token for token in MarkdownIt().parse(escaped(text)) if token.type == "inline"]
    assert "".join(child.content for child in paragraph.children) == text


# --------------------------------------------------------------------------------------------- command line


def printed(*arguments: object, code: int = 0) -> str:
    return mechstudy("dictionary", *arguments, code=code).output


def test_push_pull_and_show_on_the_command_line(fake, tmp_path):
    dictionary = random_dictionary("sae", "topk", dtype=torch.float32, model_name="some/model")
    dictionary.save(tmp_path / "unit" / "dictionary")
    (tmp_path / "unit" / "evaluation.json").write_text(json.dumps({"fvu": 0.25, "k": 3, "kind": "sae", "health": []}))
    out = printed("push", tmp_path / "unit" / "dictionary", "me/saes", "--path-in-repo", "a", "--private")
    assert "hub.example" in out and ("create", "me/saes", True) in fake.calls
    assert "| fvu | 0.25 |" in (fake.folder("me/saes", None) / "a" / "README.md").read_text()
    assert str(tmp_path / "copy") in printed("pull", "hf:me/saes/a", "--to", tmp_path / "copy")
    torch.testing.assert_close(
        Dictionary.load(tmp_path / "copy").encode(rows().float()), dictionary.encode(rows().float())
    )
    shown = printed("show", tmp_path / "unit" / "dictionary")
    for text in ("SAELens", "sae, topk", "6 -> 24 -> 6", "float32", "mlp_out.3", "some/model", "fvu"):
        assert text in shown
    [entry] = json.loads(printed("show", "hf:me/saes/a", "--json"))
    assert entry["d_sae"] == 24 and entry["metrics"] == {}
    printed("pull", "hf:me/saes/a", "--to", tmp_path / "copy", code=2)
    printed("pull", "me/saes/a", code=2)


def test_show_lists_the_dictionaries_of_a_set_in_order(tmp_path):
    circuit_tracer.write_set(
        {layer: transcoder(layer) for layer in range(11)}, tmp_path / "set", model_name="some/model"
    )
    entries = json.loads(printed("show", tmp_path / "set", "--json"))
    assert [entry["site_in"] for entry in entries] == [f"mlp_in.{layer}" for layer in range(11)]
    write_clt(tmp_path / "clt", **clt(True))
    assert "cross-layer transcoder of 3 layers" in printed("show", tmp_path / "clt")
    for layer in (2, 10):
        random_dictionary(dtype=torch.float32).save(tmp_path / "saes" / f"layer_{layer}")
    places = [entry["place"] for entry in json.loads(printed("show", tmp_path / "saes", "--json"))]
    assert [Path(place).name for place in places] == ["layer_2", "layer_10"]
    (tmp_path / "empty").mkdir()
    printed("show", tmp_path / "empty", code=2)
