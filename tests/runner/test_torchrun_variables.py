"""torchrun's variables where no torchrun set them, as a shell's profile or a cluster leaves them."""

from __future__ import annotations

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.runner.processes import torchrun

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def unclaimed(monkeypatch):
    monkeypatch.setattr(torchrun, "_launch", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "0,1"}, "RANK is '0,1'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0'"),
    ],
)
def test_variables_that_make_no_launch_are_named(changes, message):
    environment = {name: text for name, text in (WHOLE | changes).items() if text is not None}
    with pytest.raises(MechstudyError, match=message) as error:
        torchrun.claim(environment)
    assert "unset RANK WORLD_SIZE MASTER_ADDR" in str(error.value.fix) and not torchrun.started()


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "many"}, {"WORLD_SIZE": "2", "RANK": "0"}])
def test_variables_that_are_not_all_there_are_none_of_torchruns(environment):
    assert torchrun.claim(dict(environment)) is None


def test_a_whole_launch_is_taken_out_of_the_environment():
    environment = dict(WHOLE)
    launch = torchrun.claim(environment)
    assert launch is not None and (launch.rank, launch.size, launch.port) == (0, 2, 29500)
    assert "RANK" not in environment and "WORLD_SIZE" not in environment


def test_one_process_alone_is_no_launch():
    assert torchrun.claim({**WHOLE, "WORLD_SIZE": "1"}) is None
