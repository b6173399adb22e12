"""Types of file systems: which one a path is on, and whether other machines share it."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/mounts")
NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "orangefs", "panfs",
    "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs",
}  # fmt: skip
LOCAL_FUSE = {"fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.portal"}


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """The type of a path's file system, such as ``nfs4`` or ``ext4``; empty if it cannot be determined."""
    path, depth, kind = path.resolve(), -1, ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1]))  # a blank is \040
        if path.is_relative_to(point) and len(point.parts) >= depth:  # the later of two mounts hides the earlier
            depth, kind = len(point.parts), fields[2]
    return kind


def is_network(kind: str) -> bool:
    """Whether a type of file system is shared with other machines."""
    return kind in NETWORK or ((kind == "fuse" or kind.startswith("fuse.")) and kind not in LOCAL_FUSE)
