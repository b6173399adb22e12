"""A hub's model whose snapshot in the cache has lost a shard: plan, run, validate and doctor say so at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from mechstudy.cli.app import app
from mechstudy.planning.opened_study import open_study
from tests.support.hub_cache import put_in_hub_cache
from tests.support.tiny_study import write_study

GONE = "model.safetensors is a link to ../../blobs/gone, which is not there"


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """A study of ``hf:acme/tiny``, of which the blob of the weights was purged."""
    file = write_study(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = put_in_hub_cache(tmp_path / "hf", tmp_path / "model", "acme/tiny", "a" * 40)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    file.write_text(file.read_text().replace("path:model", "hf:acme/tiny"))
    monkeypatch.chdir(tmp_path)
    return file


@pytest.mark.parametrize("command", ["plan study.yaml", "run study.yaml", "validate study.yaml", "doctor hf:acme/tiny"])
def test_every_command_names_the_file_where_the_hub_is_not_asked(file, command):
    shown = CliRunner().invoke(app, command.split())
    said = " ".join((shown.stdout + shown.stderr).split())
    assert shown.exit_code == 2 and GONE in said
    assert "HF_HUB_OFFLINE" in said and "where there is a network" in said


def test_a_plan_notes_the_file_where_the_run_can_fetch_it_again(file, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("mechstudy.models.hub.download_file", lambda *_, **__: file.parent / "model" / "config.json")
    [note] = [note for note in open_study(file).notes if "hub's cache" in note]
    assert note.startswith(f"hf:acme/tiny is incomplete in the hub's cache ({GONE}") and "fetches it again" in note
