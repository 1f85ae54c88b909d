"""Commands in processes of their own that need not import PyTorch first: a server of
`multiprocessing` has done so, and forks.

What a command does is what it does in any process: its words, environment, folder, output and exit
code are its own. A test that kills one, or talks to it, starts it by `subprocess`.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

# what a training run imports; whatever is missing here is only imported later
IMPORTED = [
    "torch._dynamo",
    "lightning.pytorch",
    "lightning.pytorch.loggers",
    "hydra.main",
    "torchmetrics",
    "pyarrow.parquet",
    "fastapi",
    "nanochat.callbacks.evaluate",
    "nanochat.callbacks.report",
    "nanochat.callbacks.rollouts",
    "nanochat.callbacks.save",
    "nanochat.evals.chat",
    "nanochat.inference.engine",
    "nanochat.modules.next_token",
    "nanochat.modules.rl",
    "nanochat.runs.chat",
    "nanochat.runs.fit",
    "nanochat.runs.rl",
    "nanochat.runs.text",
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(IMPORTED)


def complaints(stderr: str | bytes) -> str:
    """What a command has said on stderr besides which checkpoint it opened."""
    text = stderr.decode() if isinstance(stderr, bytes) else stderr
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("checkpoint: "))


def run(
    words: list[str], *, env: dict[str, str], cwd: Path | None = None, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """`python -m` and these words, as `subprocess.run` with the text of both outputs."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_begin, args=(words, env, cwd or Path.cwd(), outputs))
        process.start()
        process.join(timeout)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        out, err = (path.read_text() if path.exists() else "" for path in outputs)
    if late:
        raise subprocess.TimeoutExpired(words, timeout, out, err)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _begin(words: list[str], env: dict[str, str], cwd: Path, outputs: list[Path]) -> None:
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [str(cwd), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[:] = words
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if "OMP_NUM_THREADS" in env:
        import torch

        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
