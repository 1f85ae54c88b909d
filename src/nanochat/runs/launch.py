"""Start the processes of a run ourselves, from the resolved config, so that Hydra composes once.

Lightning's own launcher runs `sys.argv` again in every process, and Hydra would compose again there, into a folder of its own.
Here the parent starts `python -m nanochat.train` once per device and hands it the resolved config in a file; Lightning finds
the variables of torchrun and joins the processes it is told of.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nanochat.runs.run_folder import RunFolder

RANK_OF = "NANOCHAT_RANK_OF"  # the file that says which run this process is a rank of


def is_rank() -> bool:
    return RANK_OF in os.environ


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_launch() -> tuple[RunFolder, dict[str, Any]]:
    """Of a rank: the run folder, held by the parent, and the resolved config."""
    launch = json.loads(Path(os.environ[RANK_OF]).read_text())
    return RunFolder(Path(launch["folder"]), resumed=launch["resumed"], lock=None), launch["config"]


def run_ranks(folder: RunFolder, config: dict[str, Any], processes: int) -> int:
    """Start `processes` ranks on this machine and wait; the first that fails stops the others. Returns the exit code.

    Ctrl-C and SIGTERM are passed on: the ranks save, and end well. KeyboardInterrupt if they could not.
    """
    port, launch = free_port(), folder.path / ".launch.json"
    launch.write_text(json.dumps({"folder": str(folder.path), "resumed": folder.resumed, "config": config}))
    ranks: list[subprocess.Popen[bytes]] = []
    for number in range(processes):
        environment = {
            **os.environ, RANK_OF: str(launch), "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": folder.path.name,  # by this variable Lightning knows that the processes exist already
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes)),
        }  # fmt: skip
        ranks.append(subprocess.Popen([sys.executable, "-m", "nanochat.train"], env=environment))

    sent: list[int] = []

    def forward(signum: int, frame: object) -> None:
        sent.append(signum)
        for rank in ranks:
            rank.send_signal(signum)

    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while any(rank.poll() is None for rank in ranks):
            if any(rank.poll() not in (None, 0) for rank in ranks):
                time.sleep(1)  # let the others say what they know
                for rank in ranks:
                    if rank.poll() is None:
                        rank.terminate()
                for rank in ranks:
                    try:
                        rank.wait(timeout=20)
                    except subprocess.TimeoutExpired:
                        rank.kill()
            time.sleep(0.1)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
        launch.unlink(missing_ok=True)
    code = max((abs(rank.returncode or 0) for rank in ranks), default=0)
    if code and signal.SIGINT in sent:
        raise KeyboardInterrupt
    return code
