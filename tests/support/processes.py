"""Python in a process of its own, with this checkout's sources and tests."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.source import ROOT


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python ARGUMENTS`` with these additions to the environment; its output is captured as text."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
