"""The command line: `mechstudy`. Thin: what it says and asks; the work is in the rooms below."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `mechstudy` command."""
    from mechstudy.cli.app import app

    app()
