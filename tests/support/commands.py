"""Every command of the command line, imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from mechstudy.cli.app import app, command


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """The app, every command and those of its groups, each with the words that call it."""
    listed = typer.main.get_command(app)
    yield (), listed
    for name in listed.commands:
        imported = command(name)
        yield (name,), imported
        yield from (((name, word), below) for word, below in getattr(imported, "commands", {}).items())
