"""The peers' virtual environments, and workers run in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
PEERS = ("saelens", "sparsify", "dictionary_learning")
UNUSED = {
    "dictionary_learning": "torchvision"
}  # built for another torch than the CPU's, it breaks transformers' import


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, made when it is not there; our own for mechstudy."""
    if name == "mechstudy":
        return Path(sys.executable)
    folder = ROOT / "build" / "peers" / name
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    if not ready.exists():
        print(f"making {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        requirements = HERE / "requirements" / f"{name}.txt"
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        if name in UNUSED:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", UNUSED[name]], check=True)
        ready.touch()
    return python


def run_worker(name: str, task: str, *arguments: object) -> list[dict[str, Any]]:
    """Run ``workers/<name>_<task>.py``; every JSON line it prints."""
    script = HERE / "workers" / f"{name}_{task}.py"
    done = subprocess.run(
        [str(python_of(name)), str(script), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
