"""Running an export in another program: in a separate process, which sees the folder
and none of our code."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROBES = Path(__file__).parent / "probes"


class NoRuntime(ValueError):
    """The program that the export is meant for is not installed."""


def probe(name: str, request: dict[str, Any], place: Path, python: str | None) -> dict[str, Any]:
    """Run `probes/NAME.py` with the interpreter `python` (None: this one) on a request and return
    its answer. Arrays are files in `place`. NoRuntime if a package is missing, ValueError with the
    last line of its output if it fails.
    """
    (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")
    environment = {key: os.environ[key] for key in kept if key in os.environ}
    with tempfile.TemporaryDirectory() as cache:
        environment |= {
            "HF_HUB_OFFLINE": "1",  # nothing but the folder itself
            "HF_HOME": cache,
            "TOKENIZERS_PARALLELISM": "false",
            "NANOCHAT_BASE_DIR": cache,
        }
        if python and os.path.dirname(python):  # a path, which is meant from here
            python = os.path.abspath(os.path.expanduser(python))
        words = [python or sys.executable, str(PROBES / f"{name}.py"), str(place)]
        try:
            done = subprocess.run(
                words, cwd=cache, env=environment, capture_output=True, encoding="utf-8"
            )
        except OSError as error:
            raise ValueError(f"python={python} cannot be started: {error.strerror}") from error
    answer = place / "answer.json"
    if done.returncode or not answer.is_file():
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["no output"]
        if lines[-1].startswith(("ModuleNotFoundError", "ImportError")):
            raise NoRuntime(lines[-1].partition(": ")[2])
        raise ValueError(f"{name} failed with the export: {lines[-1].strip()}")
    return json.loads(answer.read_text(encoding="utf-8"))
