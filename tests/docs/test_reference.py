"""The generated reference has every command, option, field and public name, each with a description."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tools.site import command_line, markup, python_api, study_fields

import mechstudy as ms
from mechstudy.core.config import Config
from mechstudy.study.study import Study, load_study
from tests.support.commands import commands

ROOT = Path(__file__).parents[2]
API, COMMANDS, FIELDS = python_api.page(), command_line.page(), study_fields.page()


def test_every_public_name_has_its_signature_and_docstring():
    assert set(python_api.public_names()) == set(ms.__all__) - {"__version__"}
    missing = [name for name in python_api.public_names() if f"### {name} {{#{name}}}" not in API]
    assert not missing
    for one in python_api.definitions():
        text = API.partition(f"### {one.name} {{#")[2].partition("\n### ")[0]
        assert len(text.split("\n\n")) > 2, one.name


def test_signatures_are_those_of_the_functions():
    assert 'answer_tokens: Literal["first", "all"] = "first",' in API
    assert "ms.load_graph(path: str | Path) -> PromptGraph" in API
    assert "#### Run.effects {#Run.effects}" in API


@pytest.mark.parametrize(("words", "one"), [pytest.param(*c, id=" ".join(c[0]) or "app") for c in commands()])
def test_every_option_has_a_line_and_a_help(words, one):
    if getattr(one, "hidden", False) or words == ("unit",):
        return
    assert not words or f"### mechstudy {' '.join(words)} {{#{'-'.join(words)}}}" in COMMANDS
    start = f"### mechstudy {' '.join(words)} {{" if words else "## mechstudy\n"
    section = COMMANDS.partition(start)[2].partition("\n## ")[0].partition("\n### ")[0]
    for param in one.params:
        assert param.help, (words, param.name)
        assert not param.opts[0].startswith("-") or markup.code(param.opts[0]) in section, (words, param.opts)


def test_every_field_of_the_study_has_a_row_and_a_description():
    fields = [field for section in study_fields.sections() for field in section.fields]
    assert not [field.path for field in fields if not field.description.strip()]
    assert not [
        field.path
        for field in fields
        if f'id="{study_fields.anchor(field.path)}"' not in FIELDS
        and f"(#{study_fields.anchor(field.path)})" not in FIELDS
    ]
    paths = {field.path for field in fields}
    assert {"model.source", "behaviours[].n_train", "dictionaries.from", "dictionaries.training.health.dead"} <= paths
    assert {"compute.slurm.phases.<phase>.time", "verdict.thresholds.stability", "storage.quota"} <= paths


def test_the_walk_reaches_every_config_of_the_study():
    def below(config: type[Config]) -> set[type[Config]]:
        found = {config}
        for info in config.model_fields.values():
            inner = study_fields._config_in(info.annotation)
            if inner is not None and inner not in found:
                found |= below(inner)
        return found

    assert below(Study) == {section.config for section in study_fields.sections()}


def test_defaults_and_bounds_are_those_of_the_models():
    assert "<code>steps</code></span> | integer; at least 1 | <code>2000</code>" in FIELDS
    assert "<code>min_accuracy</code></span> | number; at least 0; at most 1 | <code>0.8</code>" in FIELDS
    assert "<code>layers</code></span> | text or integer or list of integer or text | <code>all</code>" in FIELDS


def test_every_field_of_the_demo_is_in_the_reference():
    study, _ = load_study(ROOT / "examples" / "demo.yaml")
    anchors = {study_fields.anchor(field.path) for section in study_fields.sections() for field in section.fields}

    def paths(value: object, path: str = "") -> list[str]:
        if isinstance(value, dict):
            return [p for key, inner in value.items() for p in paths(inner, f"{path}.{key}" if path else str(key))]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [p for inner in value for p in paths(inner, path)]
        return [path]

    written = study.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert not [path for path in paths(written) if path.replace(".", "-").lower() not in anchors]


@pytest.mark.process
def test_the_reference_is_made_without_torch():
    code = (
        "from tools.site import command_line, python_api, study_fields as s; import sys\n"
        "[page.page() for page in (command_line, python_api, s)]; print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_docstrings_become_markdown():
    text = """First line.

    Code stands indented:

        x = 1

    Args:
        name: what it is, with ``code`` and a | bar,
            over two lines.

    Raises:
        ValueError: it is not.
    """
    shown = markup.docstring(text)
    assert "```python\nx = 1\n```" in shown
    assert "- <code>name</code>: what it is, with <code>code</code> and a &#124; bar, over two lines." in shown
    assert shown.endswith("**Raises**\n\n- <code>ValueError</code>: it is not.")


def test_help_texts_lose_their_styles():
    assert (
        markup.from_rich("Write [cyan]study.yaml[/], hf:<id>\\[@revision].")
        == "Write `study.yaml`, hf:<id>[@revision]."
    )
    assert markup.inline("a <b> and `c|d`") == "a &lt;b&gt; and <code>c&#124;d</code>"
