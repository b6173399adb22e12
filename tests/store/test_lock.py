"""Locks: one run of a study at a time, and no lock outlives its process."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.store.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from mechstudy.store.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path``."""
    process = hold(tmp_path)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.process
def test_a_second_run_is_refused_with_pid_host_and_time(tmp_path, holder):
    with pytest.raises(MechstudyError) as caught, RunLock(tmp_path):
        pass
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}: this study is already running\n  pid:   {holder.pid}\n")
    assert f"  host:  {platform.node()}\n  since: 20" in text
    recorded = RunLock.holder(tmp_path)
    assert recorded is not None and recorded["pid"] == holder.pid


@pytest.mark.process
def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lock").read_text() != ""  # what the killed process wrote is still there
    assert RunLock.holder(tmp_path) is None
    with RunLock(tmp_path):
        pass


def test_shared_locks_admit_one_another_and_nobody_else(tmp_path):
    with RunLock(tmp_path, shared=True), RunLock(tmp_path, shared=True):
        assert RunLock.holder(tmp_path) is None, "nobody holds it alone"
        with pytest.raises(MechstudyError, match="jobs of this study are running"), RunLock(tmp_path):
            pass


def test_within_a_process_the_lock_is_exclusive_and_can_be_taken_again(tmp_path):
    with RunLock(tmp_path / "new"):
        with pytest.raises(MechstudyError, match=f"pid:   {os.getpid()}"), RunLock(tmp_path / "new"):
            pass
        assert RunLock.holder(tmp_path / "new")["pid"] == os.getpid()
    assert RunLock.holder(tmp_path / "new") is None
    with pytest.raises(KeyError), RunLock(tmp_path / "new"):
        raise KeyError
    with RunLock(tmp_path / "new"):
        pass


def test_a_folder_without_a_lock_has_no_holder(tmp_path):
    assert RunLock.holder(tmp_path) is None


def test_without_flock_a_living_process_of_this_host_is_the_holder(tmp_path, monkeypatch):
    def unsupported(*_args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with RunLock(tmp_path):
        with pytest.raises(MechstudyError, match="already running"), RunLock(tmp_path):
            pass
        content = (tmp_path / "lock").read_text()
    (tmp_path / "lock").write_text(content.replace(f'"pid": {os.getpid()}', '"pid": 4194305'))
    with RunLock(tmp_path):  # that process is gone
        pass


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    file = tmp_path / "afile"
    file.write_text("x")
    for folder in (file, file / "sub"):
        with pytest.raises(MechstudyError, match="a file stands where a folder is needed"), RunLock(folder):
            pass
