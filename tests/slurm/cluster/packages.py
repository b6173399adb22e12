"""Debian's packages of Slurm, installed where they are absent, without any of their services being started."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.slurm.cluster.errors import Unavailable

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = (
    "munged", "munge", "mariadbd", "mariadb-install-db", "mariadb-admin", "slurmdbd", "slurmctld", "slurmd", "sbatch",
    "sacctmgr",
)  # fmt: skip
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_POLICY = Path("/usr/sbin/policy-rc.d")
_SAVED = _POLICY.with_name("policy-rc.d.before-slurm-up")
_MINUTES = 10


def require_packages() -> None:
    """Installs what is missing.

    Raises:
        Unavailable: this is not root, or not Debian, or the packages cannot be had.
    """
    if os.geteuid() != 0:
        raise Unavailable("it needs root")
    if not missing_programs():
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"there is no {missing_programs()[0]}, and no apt-get to install it with")
    print(f"installing {' '.join(PACKAGES)}", flush=True)
    with _no_service_starts():
        _apt("update")
        _apt("install", "-y", "--no-install-recommends", *PACKAGES)
    if missing := missing_programs():
        raise Unavailable(f"the packages are installed and bring no {missing[0]}")


def missing_programs() -> list[str]:
    """The programs that are needed and not there."""
    return [name for name in PROGRAMS if program(name) is None]


def program(name: str) -> str | None:
    """The path of a program, in the system's own folders too, which may not be in a user's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _apt(*words: str) -> None:
    options = ("-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30", "-o", "Dpkg::Use-Pty=0")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            ("apt-get", *options, *words), env=environment, capture_output=True, text=True, check=False,
            timeout=60 * _MINUTES, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"apt-get {words[0]} took longer than {_MINUTES} minutes") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Unavailable(f"apt-get {words[0]} failed: {lines[-1] if lines else f'exit status {done.returncode}'}")


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian's own switch: while policy-rc.d says 101, no package starts a service. Put back as it was."""
    _restore_policy()  # of an installation that was killed
    if _POLICY.exists():
        _POLICY.rename(_SAVED)
    else:
        _SAVED.write_text("")  # empty: there was none
    try:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
        yield
    finally:
        _restore_policy()


def _restore_policy() -> None:
    if not _SAVED.exists():
        return
    if _SAVED.stat().st_size:
        _SAVED.replace(_POLICY)
    else:
        _POLICY.unlink(missing_ok=True)
        _SAVED.unlink()
