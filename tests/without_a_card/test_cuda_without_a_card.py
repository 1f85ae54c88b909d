"""A step of everything that runs on a card, traced on fake tensors of a CUDA device in bf16: no
value is read on the host, no copy is waited for, no tensor is on the CPU, no product is in fp32."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("g++"), reason="the CUDA that is not there is compiled: no g++"
    ),
    pytest.mark.skipif(
        torch.version.cuda is not None, reason="this PyTorch has its own CUDA; needs a CPU build"
    ),
]
# What a step may do, and why.
READ = "a value is read on the host"
ALLOWED = {
    ("modules/rl.py:_update", READ): "the numbers of a step, once, after its answers were written",
    ("modules/rl.py:_add_up", READ): "the norm of the gradients, likewise",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("library")
    command = [sys.executable, str(HERE / "steps.py"), str(folder)]
    source = {**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")}
    done = subprocess.run(command, env=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: {tuple(pair) for pair in pairs} for name, pairs in results.items()}


def test_no_step_waits_for_the_card_or_computes_elsewhere_or_wider(found) -> None:
    steps = {name: pairs for name, pairs in found.items() if not name.startswith("planted")}
    assert len(steps) == 13
    assert not {
        name: pairs - ALLOWED.keys() for name, pairs in steps.items() if pairs - ALLOWED.keys()
    }
    assert set.union(*steps.values()) == ALLOWED.keys(), "what is allowed and never done comes off"


@pytest.mark.parametrize(
    ("planted", "place", "what"),
    [
        ("an index on the CPU", "gpt/model.py:_run_trunk", "an index on the CPU"),
        (".item() in the step", "modules/next_token.py:micro_loss", READ),
        ("fp32 in the stream", "gpt/model.py:multiply", "a product in torch.float32"),
    ],
)
def test_a_planted_fault_is_found_where_it_acts(found, planted, place, what) -> None:
    assert (place, what) in found[f"planted: {planted}"]
