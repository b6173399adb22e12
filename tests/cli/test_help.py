"""The help of every command: it prints, and what stands in brackets is not taken for rich's markup."""

from __future__ import annotations

import inspect
import re

import pytest
from typer.testing import CliRunner

from mechstudy.cli.app import PANELS, app, command
from mechstudy.study.phases import registry
from tests.support.commands import commands

STYLES = {"[cyan]", "[dim]", "[bold]", "[/]"}


@pytest.mark.parametrize(("path", "command"), [pytest.param(*c, id=" ".join(c[0]) or "app") for c in commands()])
def test_help_prints_with_all_that_stands_in_brackets(path, command):
    printed = CliRunner(env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}).invoke(app, [*path, "--help"])
    assert printed.exit_code == 0, repr(printed.exception)
    texts = [command.help or "", *(getattr(item, "help", None) or "" for item in command.params)]
    bracketed = {found for text in texts for found in re.findall(r"\[[^\]]*\]", text)} - STYLES
    assert not {found for found in bracketed if found not in printed.output}


def test_the_walk_reaches_commands_of_groups():
    assert {("dictionary", "compare"), ("bench", "synthetic"), ("run",)} <= {path for path, _ in commands()}


@pytest.mark.parametrize(("place", "line"), [item for panel in PANELS.values() for item in panel.items()])
def test_the_list_of_commands_shows_the_first_paragraph_of_each_help(place, line):
    help = inspect.cleandoc(command(place.partition(".")[2]).help)
    assert help.partition("\n\n")[0].replace("\n", " ") == line


def test_every_command_of_a_phase_is_listed_in_the_order_of_phases():
    declared = dict.fromkeys(phase.command.name for phase in registry.phases() if phase.command is not None)
    assert list(registry.COMMANDS) == list(declared)


@pytest.mark.parametrize(("path", "command"), [pytest.param(*c, id=" ".join(c[0]) or "app") for c in commands()])
def test_paragraphs_of_help_break_where_the_terminal_ends(path, command):
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        assert "\n" not in paragraph or paragraph.startswith("[")
