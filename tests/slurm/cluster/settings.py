"""The cluster's files: where each lies, and the configuration that is known to work on one node (Slurm 22.05)."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster.errors import ClusterError

GPUS = 2
CPUS = 4  # as Slurm is shown; so few that tests on 2 cores overlap as on a larger machine
PARTITION, SHORT = "debug", "short"
ACCOUNT = "main"
_FIRST_PORT = 27817
_SOCKET_PATH = 100  # characters: Unix sockets have 108, Slurm's own names need some


@dataclass(frozen=True)
class Layout:
    """The folder of a cluster and what lies where in it."""

    folder: Path

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def state(self) -> Path:
        """Ports and processes of the running cluster; absent when it is down."""
        return self.folder / "cluster.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "run" / "munge.sock"

    @property
    def munge_key(self) -> Path:
        return self.folder / "etc" / "munge.key"

    @property
    def mysql_socket(self) -> Path:
        return self.folder / "run" / "mysql.sock"

    @property
    def database(self) -> Path:
        return self.folder / "mysql"

    def log(self, daemon: str) -> Path:
        return self.folder / "logs" / f"{daemon}.log"

    def output(self, daemon: str) -> Path:
        return self.folder / "logs" / f"{daemon}.out"

    def environment(self) -> dict[str, str]:
        """What daemons and clients of this cluster need in theirs; libmariadb finds the database by it."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "MYSQL", "MARIADB"))}
        return inherited | {"SLURM_CONF": str(self.slurm_conf), "MYSQL_UNIX_PORT": str(self.mysql_socket)}


@dataclass(frozen=True)
class Ports:
    """Of loopback."""

    slurmctld: int
    slurmd: int
    slurmdbd: int


def free_ports() -> Ports:
    """Three ports nobody listens on, the same ones every time where they are free."""
    found: list[int] = []
    for port in range(_FIRST_PORT, _FIRST_PORT + 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == 3:
            return Ports(*found)
    raise ClusterError(f"no three free ports from {_FIRST_PORT} on")


def write(layout: Layout, ports: Ports) -> None:
    """Makes the folders, the key, the pretend GPUs and the configuration.

    Raises:
        ClusterError: the folder's path is too long for sockets, or devices cannot be made.
    """
    longest = max(len(str(layout.munge_socket)), len(str(layout.folder / "spool" / "node1_12345678.0")))
    if longest > _SOCKET_PATH:
        raise ClusterError(f"{layout.folder} is too long a path for sockets: choose a shorter one with --folder")
    for name in ("etc", "run", "logs", "spool", "state", "mysql", "dev"):
        (layout.folder / name).mkdir(parents=True, exist_ok=True)
    _private(layout.munge_key, os.urandom(128))
    _make_gpus(layout.folder / "dev")
    etc = layout.folder / "etc"
    layout.slurm_conf.write_text(_slurm_conf(layout, ports))
    (etc / "gres.conf").write_text(f"NodeName=node1 Name=gpu File={layout.folder}/dev/nvidia[0-{GPUS - 1}]\n")
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    _private(etc / "slurmdbd.conf", _slurmdbd_conf(layout, ports).encode())


def _private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _make_gpus(folder: Path) -> None:
    """Device files with NVIDIA's numbers, behind which there is nothing: Slurm counts them and hands them out."""
    for number in range(GPUS):
        path = folder / f"nvidia{number}"
        if not path.exists():
            try:
                os.mknod(path, 0o600 | 0o020000, os.makedev(195, number))
            except OSError as error:
                raise ClusterError(f"no device file can be made in {folder}: {error.strerror}") from error


def _hostname() -> str:
    return socket.gethostname().partition(".")[0]


def _address() -> tuple[str, str]:
    """The loopback address, and the line by which daemons listen there alone.

    Slurm has no other way to say that than "where the hostname resolves to". Where that is not loopback (in many
    containers) the daemons listen everywhere, and take only what is signed with the cluster's own key.
    """
    try:
        resolved = socket.gethostbyname(socket.gethostname())
    except OSError:
        resolved = ""
    if resolved.startswith("127."):
        return resolved, "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
    return "127.0.0.1", ""


def _memory_mb() -> int:
    """Most of the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(0.9 * total / 2**20)


def _slurm_conf(layout: Layout, ports: Ports) -> str:
    folder, host, memory = layout.folder, _hostname(), _memory_mb()
    address, listening = _address()
    return f"""\
ClusterName=ci
SlurmctldHost={host}({address})
SlurmctldPort={ports.slurmctld}
SlurmdPort={ports.slurmd}
{listening}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire: a job that was put back into the queue waits this long and a second; the default is two minutes
AuthInfo=socket={layout.munge_socket},cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={layout.log("slurmctld")}
SlurmdLogFile={layout.log("slurmd")}
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={ports.slurmdbd}
AccountingStoragePass=socket={layout.munge_socket}
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory // (2 * CPUS)}

KillWait=5
# a job that has ended is soon forgotten, as on a busy cluster
MinJobAge=5
MessageTimeout=10
ReturnToService=2

GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr={address} CPUs={CPUS} RealMemory={memory} Gres=gpu:{GPUS} State=UNKNOWN
PartitionName={PARTITION} Nodes=node1 Default=YES MaxTime=INFINITE State=UP
PartitionName={SHORT} Nodes=node1 MaxTime=1 State=UP
"""


def _slurmdbd_conf(layout: Layout, ports: Ports) -> str:
    address, listening = _address()
    return f"""\
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost={_hostname()}
DbdAddr={address}
DbdPort={ports.slurmdbd}
{listening}
SlurmUser=root
PidFile={layout.folder}/run/slurmdbd.pid
LogFile={layout.log("slurmdbd")}
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


def mariadb_options(layout: Layout) -> list[str]:
    """A database of a few megabytes that listens on a socket alone and loses at most a second when it is killed."""
    return [
        "--no-defaults",
        "--user=root",
        f"--datadir={layout.database}",
        f"--socket={layout.mysql_socket}",
        f"--pid-file={layout.folder}/run/mariadbd.pid",
        "--skip-networking",
        "--skip-log-bin",
        "--performance-schema=OFF",
        "--max-connections=20",
        "--innodb-buffer-pool-size=16M",
        "--innodb-log-file-size=8M",
        "--innodb-use-native-aio=0",
        "--innodb-flush-method=fsync",
        "--innodb-flush-log-at-trx-commit=2",
        "--innodb-lock-wait-timeout=900",
        "--key-buffer-size=1M",
        "--aria-pagecache-buffer-size=1M",
    ]
