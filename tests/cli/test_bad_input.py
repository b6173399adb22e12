"""Mistakes in studies, models, prompts, dictionaries, runs and commands: the message, the exit status, what is left."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from mechstudy.cli.app import app
from mechstudy.runner.slurm import commands
from tests.cli.bad_input_table import CASES
from tests.support.bad_input import Case, change
from tests.support.toy_model import mechstudy
from tests.support.toy_units import calls, unit, use


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path_factory):
    """A machine without a GPU and without a network, whose caches are outside of the study's folder."""
    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("MECHSTUDY_CACHE", str(caches))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(caches))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(caches / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(commands, "require", lambda: None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_is_named_exits_with_2_and_leaves_nothing(here, case: Case):
    case.arrange(here)
    before = content(here)
    result = CliRunner().invoke(app, shlex.split(case.command))
    shown = flat(result.stdout + result.stderr)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, shown
    assert "Traceback" not in shown
    assert [word for word in case.words if word not in shown] == [], shown
    assert content(here) == before


def test_the_table_has_forty_mistakes_of_all_kinds_and_none_twice():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("words", [("--hardware", "h100"), ("--set", "compute.slurm.gpus=1")])
def test_a_plan_for_another_machine_may_name_its_device(here, words):
    assert "train[3]" in mechstudy("plan", "study.yaml", "--device", "cuda", *words).stdout


def test_submit_leaves_the_device_to_the_nodes(here):
    change("device: cpu", "device: cuda")(here)
    assert "15 units" in mechstudy("submit", "study.yaml", "--dry-run").stdout


def test_a_finished_study_needs_its_device_no_longer(here, monkeypatch):
    use(monkeypatch, [unit("left"), unit("right")])
    mechstudy("run", "study.yaml")
    mechstudy("run", "study.yaml", "--device", "cuda")
    assert len(calls(here / "runs" / "tiny")) == 2


def content(root: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of files."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def flat(text: str) -> str:
    """In one line, without the frames of typer's messages."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)
