"""The command line of the cluster."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.slurm.cluster.cluster import FOLDER, Cluster
from tests.slurm.cluster.errors import ClusterError, Unavailable
from tests.slurm.cluster.settings import CPUS, GPUS, PARTITION, SHORT


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 1 where a daemon fails; 2 where this machine cannot have a cluster; of `run`, the command's."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    cluster = Cluster(asked.folder)
    try:
        if asked.command == "down":
            print("Slurm is down" if cluster.down() else "no Slurm of ours is up")
            return 0
        began = cluster.up()
        if asked.command == "run":
            return _run(cluster, asked.words, ours=began)
    except Unavailable as error:
        skipped = asked.command == "run"
        print(f"no Slurm on this machine: {error}" + (": its tests are skipped" if skipped else ""))
        return 0 if skipped else 2
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_told(cluster, began))
    return 0


def _run(cluster: Cluster, words: Sequence[str], *, ours: bool) -> int:
    """Runs a command with the cluster, and ends the cluster if it was started for that."""
    try:
        return subprocess.run(words, env=cluster.layout.environment(), check=False).returncode
    finally:
        if ours:
            cluster.down()


def _told(cluster: Cluster, began: bool) -> str:
    return (
        f"{cluster.call('sinfo', '--version').strip()} is {'up' if began else 'up already'}: one node, {CPUS} CPUs, "
        f"{GPUS} pretend GPUs, partitions {PARTITION} and {SHORT} (a minute)\n"
        f"  export SLURM_CONF={cluster.layout.slurm_conf}\n"
        "  make slurm-down ends it"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where everything lies (default: {FOLDER})")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring the cluster up; install the packages if they are missing")
    commands.add_parser("down", help="end it, and nothing else")
    run = commands.add_parser("run", help="run a command with the cluster: run -- pytest -m slurm tests/slurm")
    run.add_argument("words", nargs="+", metavar="COMMAND")
    return parser


def _terminated(_number: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
