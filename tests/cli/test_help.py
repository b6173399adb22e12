"""The help of every command: it prints, and what stands in brackets is not taken for rich's markup."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from mechstudy.cli.app import app

STYLES = {"[cyan]", "[dim]", "[bold]", "[/]"}


def commands(command=None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command of the app and of its groups, the app itself first."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.mark.parametrize(("path", "command"), [pytest.param(*c, id=" ".join(c[0]) or "app") for c in commands()])
def test_help_prints_with_all_that_stands_in_brackets(path, command):
    printed = CliRunner(env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}).invoke(app, [*path, "--help"])
    assert printed.exit_code == 0, repr(printed.exception)
    texts = [command.help or "", *(getattr(item, "help", None) or "" for item in command.params)]
    bracketed = {found for text in texts for found in re.findall(r"\[[^\]]*\]", text)} - STYLES
    assert not {found for found in bracketed if found not in printed.output}


def test_the_walk_reaches_commands_of_groups():
    assert {("dictionary", "compare"), ("bench", "synthetic"), ("run",)} <= {path for path, _ in commands()}
