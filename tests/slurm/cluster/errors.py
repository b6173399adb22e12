"""What can go wrong with the cluster: it cannot be had on this machine, or it does not work."""

from __future__ import annotations

from pathlib import Path

_LINES = 15


class Unavailable(Exception):
    """This machine cannot have the cluster: no root, or no packages. A reason to skip its tests."""


class ClusterError(Exception):
    """The cluster does not start, answer or end as it should. No reason to skip anything."""


def with_log(what: str, *logs: Path) -> ClusterError:
    """An error with the last lines of a daemon's logs."""
    parts = [what]
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()[-_LINES:] if log.is_file() else []
        if lines:
            parts.append("\n".join([f"{log}:", *(f"  {line}" for line in lines)]))
    return ClusterError("\n".join(parts))
