"""`serve` as a process: it prints an address that answers, and Ctrl+C ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

import mechstudy as ms
from tests.support.tiny_study import write_study

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]


def listens() -> None:
    """A process that is started in the background ignores Ctrl+C, and hands that on to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(tmp_path, stop):
    ms.Study.load(write_study(tmp_path), out=tmp_path / "run", say=lambda _: None).run(["model", "report"])
    process = subprocess.Popen(
        [sys.executable, "-m", "mechstudy", "serve", "run"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        preexec_fn=listens,
    )  # fmt: skip
    assert process.stdout is not None
    printed = ""
    while "report: " not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    [address] = re.findall(r"http://127\.0\.0\.1:\d+/\S+/index\.html", printed)
    assert "live.js" in urlopen(address).read().decode()
    with pytest.raises(HTTPError, match="404"):
        urlopen(re.sub(r"(:\d+)/[^/]+/", r"\1/guess/", address))
    process.send_signal(stop)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in printed + rest
    assert rest.rstrip().endswith("stopped")
