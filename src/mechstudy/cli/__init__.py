"""The command line: `mechstudy`. Thin: what it says and asks; the work is in the rooms below."""

from __future__ import annotations

from mechstudy.cli.app import app


def main() -> None:
    """Entry point of the `mechstudy` command."""
    app()
