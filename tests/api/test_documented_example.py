"""The examples of docs/reference/python.md run exactly as they are written."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import mechstudy as ms

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "python.md"


def examples() -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


def test_the_examples_name_only_what_there_is():
    assert set(re.findall(r"\bms\.(\w+)", examples())) <= set(ms.__all__)


def test_the_page_names_every_function():
    functions = {name for name in ms.__all__ if name.islower()}
    assert functions <= set(re.findall(r"\w+", PAGE.read_text(encoding="utf-8")))


@pytest.mark.real
def test_the_examples_run(demo, tmp_path, monkeypatch):
    shutil.copytree(demo.parents[1], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    names = {"rows": torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))}
    exec(compile(examples(), str(PAGE), "exec"), names)
    assert ms.load_graph("keys.json").prompt == "The keys to the cabinet"
    assert [str(site) for site in names["acts"].sites] == [f"resid_post.{layer}" for layer in range(10, 16)]
    assert len(names["run"].effects)
    assert (Path("runs/demo") / "report").exists()
