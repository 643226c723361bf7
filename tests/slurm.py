"""A real SLURM on this machine, for tests: its controller, one node and munge, in a folder of their own."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
CONFIGURATION = """\
ClusterName=comrope
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=batch Nodes={host} Default=YES PriorityTier=1
PartitionName=cheap Nodes={host} PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes={host} PriorityTier=2
"""
"""Jobs in `urgent` push out those in `batch`, which are queued again at once (a job waits for `cred_expire` before it starts
again), and those in `cheap`, which are not. Two jobs run at a time."""


@contextmanager
def slurm() -> Iterator[Path]:
    """Yields the folder of a running SLURM's configuration, `slurm.conf`, and logs; the environment has its path meanwhile.

    The test is skipped where SLURM is not installed, or fails if COMROPE_REQUIRE_SLURM is set.
    """
    path = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        if os.environ.get("COMROPE_REQUIRE_SLURM"):
            pytest.fail(f"COMROPE_REQUIRE_SLURM is set, but {', '.join(missing)} is missing.")
        pytest.skip(f"no SLURM on this machine ({', '.join(missing)}): apt-get install slurmctld slurmd munge")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))  # sockets need a short path
        folder.chmod(0o755)  # as munge wants it
        (folder / "spool").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        names = {"host": socket.gethostname().partition(".")[0], "user": pwd.getpwuid(os.getuid()).pw_name}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=_free_ports(2), **names))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", path)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        munged = ["munged", "--foreground", "--force"]
        munged += [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_stop, process)
            if command[0] == "munged":
                wait(lambda: (folder / "munge.socket").exists(), 30, lambda: logs(folder))
        wait(lambda: "idle" in ask("sinfo", "--noheader", "--format=%T"), 60, lambda: logs(folder))
        yield folder
        ask("scancel", "--me")
        wait(lambda: not ask("squeue", "--noheader"), 60, lambda: logs(folder))


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def ask(*command: str) -> str:
    """Returns what a command prints; "" if it fails, as long as the controller is not up."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def wait(due: Callable[[], object], seconds: float, explain: Callable[[], str] = lambda: "") -> None:
    """Waits until something is true; after so many seconds the test fails, with an explanation."""
    end = time.monotonic() + seconds
    while not due():
        assert time.monotonic() < end, explain()
        time.sleep(0.05)


def logs(folder: Path) -> str:
    """Returns what the daemons have said last, and what is queued."""
    ends = [f"{path.name}:\n{path.read_text(errors='replace')[-4000:]}" for path in sorted(folder.glob("*.log"))]
    return "\n".join([*ends, ask("squeue", "--states=all")])
