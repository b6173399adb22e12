"""A process in which a peer computes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.peers.environment import HERE, ROOT


class Worker:
    """A process in the peers' environment that answers one JSON line with another."""

    def __init__(self, python: Path, peer: str, log: Path, threads: int = 1) -> None:
        self._log = log
        # Nothing of these tests may ask a hub.
        env = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        env |= {"PEER_THREADS": str(threads)}
        # Peers print as they please, so that answers have a pipe of their own.
        read, write = os.pipe()
        self._answers = os.fdopen(read)
        self._process = subprocess.Popen(
            [str(python), "-m", f"tests.peers.workers.{peer}", str(write)],
            stdin=subprocess.PIPE,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            text=True,
            env=env,
            cwd=HERE,
        )
        os.close(write)

    def __call__(self, task: str, **arguments: Any) -> Any:
        """What the worker's function of that name returns.

        Raises:
            AssertionError: it raised.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task} | {k: _plain(v) for k, v in arguments.items()}) + "\n")
        self._process.stdin.flush()
        line = self._answers.readline()
        assert line, f"the worker has ended:\n{self._log.read_text()[-2000:]}"
        answer = json.loads(line)
        assert "error" not in answer, answer.get("error")
        return answer["value"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._answers.close()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
