"""Chat templates with a clock."""

from __future__ import annotations

import json

import pytest

from mechstudy.models.chat_clock import chat_template, reads_the_clock
from mechstudy.models.tokenizer import encode
from tests.support.tiny import tiny_tokenizer

CLOCK = "Today is {{ strftime_now('%d %b %Y %H:%M') }}. {% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CLOCK, True),
        (
            "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}{{ day }}",
            True,
        ),
        ("{% if tools %}{{ strftime_now('%Y') }}{% endif %}{{ messages[0].content }}", False),  # never rendered
        ("{% set date_string = '26 Jul 2024' %}{{ date_string }}", False),
        ("{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}", True),  # of a tag that is not known here
        (None, False),
    ],
)
def test_a_template_is_rendered_to_find_out(template, expected):
    assert reads_the_clock(template) is expected


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "named"])
def test_templates_are_found_in_every_place(tmp_path, place):
    if place.endswith("jinja"):
        (tmp_path / place).write_text(CLOCK)
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CLOCK}]
        content = {"chat_template": named if place == "named" else CLOCK}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    assert chat_template(tmp_path) == CLOCK


def test_a_date_fixes_every_part_of_the_clock():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CLOCK
    text = tokenizer.decode(encode(tokenizer, " Yes", "Go on", "tiny", "2024-02-29"))
    assert text == "Today is 29 Feb 2024 00:00. Go on Yes"
    assert encode(tokenizer, " Yes", "Go on", "tiny") != encode(tokenizer, " Yes", "Go on", "tiny", "2024-02-29")
