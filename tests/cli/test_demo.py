"""`mechstudy demo` runs the study of examples/demo.yaml, with the overrides and folder that `run` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mechstudy.cli import demo
from mechstudy.cli.app import app

DEMO = Path(__file__).parents[2] / "examples" / "demo.yaml"


def test_the_demo_of_a_checkout_is_the_example():
    assert demo.demo_file() == DEMO


def test_study_prints_the_file():
    printed = CliRunner().invoke(app, ["demo", "--study"])
    assert printed.exit_code == 0 and printed.stdout == DEMO.read_text(encoding="utf-8")


def test_the_demo_is_run_with_the_options_of_run(monkeypatch):
    given = []
    monkeypatch.setattr(demo, "run", lambda *args: given.append(args))
    done = CliRunner().invoke(app, ["demo", "--out", "here", "--set", "seed=1", "--threads", "2"])
    assert done.exit_code == 0, done.output
    assert given == [(DEMO, ["seed=1"], Path("here"), None, 2)]


@pytest.mark.process
def test_a_wrong_override_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["demo", "--set", "dictionaries.layer=3"])
    assert done.exit_code == 2 and "dictionaries.layer" in done.output
