"""A worker per peer, started once: importing one takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.environment import HERE, ROOT, Unavailable, python_of_peers


class Worker:
    """A process in the peers' environment that answers one JSON line with another."""

    def __init__(self, python: Path, peer: str, log: Path) -> None:
        self._log = log
        # Nothing of these tests may ask a hub.
        env = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
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


@pytest.fixture(scope="session")
def python() -> Path:
    try:
        return python_of_peers()
    except Unavailable as error:
        pytest.skip(f"the peers cannot be installed here: {error}")


def _worker(peer: str) -> Any:
    @pytest.fixture(scope="session", name=peer)
    def start(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
        worker = Worker(python, peer, tmp_path_factory.mktemp(peer) / "log.txt")
        yield worker
        worker.close()

    return start


saelens = _worker("saelens")
sparsify = _worker("sparsify")
dictionary_learning = _worker("dictionary_learning")
circuit_tracer = _worker("circuit_tracer")
