"""Small programs asked for a line."""

from __future__ import annotations

import subprocess


def output_of(*words: str, seconds: float = 10) -> str | None:
    """Standard output of a command, stripped; None when it fails, is absent or takes too long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
