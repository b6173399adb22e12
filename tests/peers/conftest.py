"""A worker per peer, started once: importing one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.environment import Unavailable, python_of_peers
from tests.peers.worker import Worker


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
delphi = _worker("delphi")
