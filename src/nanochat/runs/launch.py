"""Starting the processes of a run from the resolved config, so that Hydra composes only once.

Lightning's own launcher would run `sys.argv` again in every process, and Hydra would compose there
again, into another folder. Here the parent starts `python -m nanochat.train` once per device and
passes the resolved config in a file. Lightning finds torchrun's environment variables and joins the
existing processes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.runs.run_folder import RunFolder, not_forked
from nanochat.runtime.locks import child_fds
from nanochat.runtime.signals import STOPS, CtrlC, EndedBy, handle_stops, restore_stops

# environment variable with the launch file of the run that this process is a rank of
RANK_OF = "NANOCHAT_RANK_OF"
TRACE = ".trace"  # suffix of a rank's file for the traceback of an unexpected error
SAID = 2  # exit code of a rank that has printed its error
# guess: seconds for ranks to end after a second Ctrl-C; a stopped one (SIGSTOP, a debugger) never
# does
GRACE = 10.0
KILL = getattr(signal, "SIGKILL", 9)  # Windows has none


def is_rank() -> bool:
    return RANK_OF in os.environ


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_launch() -> tuple[RunFolder, dict[str, Any]]:
    """For a rank: the run folder, whose lock it shares with the parent, and the resolved config."""
    launch = json.loads(Path(os.environ[RANK_OF]).read_text(encoding="utf-8"))
    lock = not_forked(os.fdopen(launch["lock"], "w")) if launch["lock"] is not None else None
    return RunFolder(Path(launch["folder"]), resumed=launch["resumed"], lock=lock), launch["config"]


def run_ranks(folder: RunFolder, config: dict[str, Any], processes: int) -> bool:
    """Start `processes` ranks on this machine and wait; the first that fails stops the others. True
    if they were stopped by a signal.

    ValueError names the rank that failed and how. Stop signals are passed on: the ranks save and
    end normally; KeyboardInterrupt if they could not. If this process is killed, the ranks do the
    same, and until they have ended no other process can open the folder.
    """
    port, launch = free_port(), folder.path / ".launch.json"
    lock = child_fds(folder.lock)
    run = {"folder": str(folder.path), "resumed": folder.resumed, "config": config}
    launch.write_text(json.dumps({**run, "lock": lock[0] if lock else None}), encoding="utf-8")
    command = [sys.executable, "-m", "nanochat.train"]
    ranks: list[subprocess.Popen[bytes]] = []
    for number in range(processes):
        env = rank_environment(launch, number, processes, port)
        # stdin stays open while this process lives
        ranks.append(subprocess.Popen(command, env=env, stdin=subprocess.PIPE, pass_fds=lock))

    sent: list[int] = []
    failed: tuple[int, int] | None = None
    ctrl_c, patience = CtrlC(), float("inf")

    def forward(signum: int, frame: object) -> None:
        nonlocal patience
        sent.append(signum)
        if signum == signal.SIGINT and ctrl_c.again():
            patience = min(patience, time.monotonic() + GRACE)
        for rank in ranks:
            rank.send_signal(signum)

    old = handle_stops(forward)
    try:
        while any(rank.poll() is None for rank in ranks):
            if time.monotonic() > patience:
                for rank in ranks:
                    rank.kill()
            if failed is None and (failed := failure([rank.poll() for rank in ranks])):
                stop_others(ranks)
            time.sleep(0.1)
    finally:
        restore_stops(old, stopped=bool(sent))
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
        launch.unlink(missing_ok=True)
        traces = {
            path.suffix: path.read_text(encoding="utf-8") for path in folder.path.glob(f"{TRACE}.*")
        }
        for number in range(processes):
            trace_file(folder.path, number).unlink(missing_ok=True)
    if failed := failed or failure([rank.returncode for rank in ranks]):
        raise error_of(failed, sent, traces, folder.path)
    return bool(sent)


def stop_others(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    time.sleep(1)  # time for them to report
    for rank in ranks:
        if rank.poll() is None:
            rank.terminate()
    for rank in ranks:
        try:
            rank.wait(timeout=20)
        except subprocess.TimeoutExpired:
            rank.kill()


def rank_environment(launch: Path, number: int, processes: int, port: int) -> dict[str, str]:
    """The environment of rank `number`, as torchrun sets it."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {
        **os.environ,
        RANK_OF: str(launch),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # tells Lightning that the processes exist already
        "TORCHELASTIC_RUN_ID": launch.parent.name,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or threads,
    }


def error_of(
    failed: tuple[int, int], sent: Sequence[int], traces: dict[str, str], folder: Path
) -> BaseException:
    """What to raise for a rank that failed, after printing its traceback if it wrote one."""
    number, code = failed
    if signal.SIGINT in sent:
        return KeyboardInterrupt()
    stops = [*sent, *(stop for stop in STOPS if code in (-stop, 128 + stop))]
    if stops and code not in (SAID, -KILL):
        return EndedBy(
            stops[0],
            f"{signal.Signals(stops[0]).name} ended rank {number} before it could save; the same "
            f"command with resume=auto continues in {folder}",
        )
    if code > 0:  # if a signal ended one rank, the others only report that it is missing
        print(traces.get(f".{number}", ""), end="", file=sys.stderr)
    return ValueError(
        f"rank {number} {became(code)}; its output is above. This command with resume=auto "
        f"continues after the last checkpoint in {folder}"
    )


def failure(codes: Sequence[int | None]) -> tuple[int, int] | None:
    """(rank, exit code) of one that failed, by the exit codes so far; one that was killed before
    one that missed it.

    >>> failure([None, 0]), failure([1, 0]), failure([1, -9])
    (None, (0, 1), (1, -9))
    """
    return min(
        ((rank, code) for rank, code in enumerate(codes) if code),
        key=lambda found: found[1],
        default=None,
    )


def became(code: int) -> str:
    """How a process ended, in words."""
    if code == -KILL:
        return "was killed by SIGKILL, which is also what a machine out of memory sends"
    return (
        f"was ended by {signal.Signals(-code).name}"
        if code < 0
        else f"failed with exit code {code}"
    )


def trace_file(folder: Path, rank: int) -> Path:
    """The file for a rank's traceback of an unexpected error. The parent shows that of the first
    rank to fail."""
    return folder / f"{TRACE}.{rank}"
