"""The version, the changelog and the files about the project agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from ruamel.yaml import YAML

from mechstudy._version import __version__

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_changelog_begins_with_this_version():
    assert re.findall(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[0] == __version__


def test_the_citation_is_of_this_version_and_license():
    citation = YAML(typ="safe").load(read("CITATION.cff"))
    assert citation["version"] == __version__
    assert citation["license"] in tomllib.loads(read("pyproject.toml"))["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_tools_of_pre_commit_are_those_of_make_check():
    hooks = YAML(typ="safe").load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    check = read("Makefile").partition("\ncheck:")[2].partition("\n\n")[0]
    for hook in hooks:
        command = " ".join(word for word in hook["entry"].removeprefix(".venv/bin/").split()[:2])
        assert f"$(BIN)/{command}" in check, hook["id"]


def test_issue_forms_have_a_name_and_required_fields():
    forms = [file for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if file.stem != "config"]
    assert len(forms) >= 3
    for file in forms:
        form = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form), file.name
        assert any(part.get("validations", {}).get("required") for part in form["body"]), file.name


def test_pins_cover_the_tools_of_the_extras():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in read("constraints.txt").splitlines()}
    wanted = {re.split(r"[>=<\[ ]", one)[0].lower() for name in ("dev", "docs", "paper") for one in extras[name]}
    assert not wanted - pinned


def test_pages_name_the_wheel_of_this_version():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {found for page in pages for found in re.findall(r"mechstudy-(\S+?)-py3", page.read_text(encoding="utf-8"))}
    assert named == {__version__}
