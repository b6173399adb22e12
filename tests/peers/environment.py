"""One environment for all peers: a folder over ours, so that torch is there once and nothing of ours changes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FOLDER = ROOT / "build" / "peers" / "tests"


class Unavailable(Exception):
    """The peers could not be installed; the reason is pip's."""


def python_of_peers() -> Path:
    """The interpreter that imports the peers, made anew when what is asked for has changed.

    Raises:
        Unavailable: pip could not install them, as without a network.
    """
    lists = [HERE / "requirements.txt", HERE / "requirements-alone.txt"]
    asked = b"".join(path.read_bytes() for path in lists) + sys.version.encode() + sys.executable.encode()
    stamp = hashlib.sha256(asked).hexdigest()
    python, ready = FOLDER / "bin" / "python", FOLDER / ".ready"
    if ready.exists() and ready.read_text() == stamp:
        return python
    shutil.rmtree(FOLDER, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(FOLDER)], check=True)
    [inside] = (FOLDER / "lib").glob("python*/site-packages")
    (inside / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    _pip(python, *constraints, "-r", str(lists[0]))
    _pip(python, "--no-deps", "-r", str(lists[1]))
    ready.write_text(stamp)
    return python


def _pip(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--retries", "1", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line.upper()]
        raise Unavailable((errors or [f"pip exited with {done.returncode}"])[-1])
