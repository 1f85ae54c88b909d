"""A run that is killed ends as one that was never interrupted, bit for bit."""

import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.runs.run_folder import lock
from tests.train.conftest import environment, losses, the_run

pytestmark = pytest.mark.slow
STEPS = 24
WORDS = [f"max_steps={STEPS}", "save_every=3", "eval_every=6", "checkpoints.keep_last=3"]
Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def whole(train: Train, shared_base: Path) -> Path:
    train("run_name=whole", *WORDS)
    return the_run(shared_base, "whole")


def start(
    base: Path,
    tiny: list[str],
    name: str,
    *words: str,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "nanochat.train", *tiny, *WORDS, f"run_name={name}", *words]
    return subprocess.Popen(
        command,
        env=environment(base),
        stdout=stdout,
        stderr=stderr,
        cwd=base,
        start_new_session=True,
    )


def checkpoints_of(base: Path, name: str) -> Path:
    runs = list((base / "runs" / name).glob("*/checkpoints"))
    return runs[0] if runs else base / "nothing"


def assert_same(mine: Path, whole: Path) -> None:
    assert losses(mine) == losses(whole)
    end = f"checkpoints/step_{STEPS:06d}"
    assert filecmp.cmp(
        mine / end / "model.safetensors", whole / end / "model.safetensors", shallow=False
    )
    assert json.loads((mine / end / "metrics.json").read_text()) == json.loads(
        (whole / end / "metrics.json").read_text()
    )


def test_killed_at_random_moments_it_ends_the_same(
    whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    rng = random.Random(1)
    kills = 0
    for _ in range(4):
        process = start(shared_base, tiny, "killed", "resume=auto")
        before = len(RunCheckpoints(checkpoints_of(shared_base, "killed")).steps())
        deadline = time.monotonic() + 300
        while (
            process.poll() is None and time.monotonic() < deadline
        ):  # until it has written something new, then a moment more
            if len(RunCheckpoints(checkpoints_of(shared_base, "killed")).steps()) != before or list(
                checkpoints_of(shared_base, "killed").glob(".writing*")
            ):
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.6)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills >= 2
    train("run_name=killed", *WORDS, "resume=auto")
    assert_same(the_run(shared_base, "killed"), whole)


def test_killed_while_it_writes_a_checkpoint_the_previous_one_is_used(
    whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    process = start(shared_base, tiny, "torn")
    place, deadline = shared_base / "nothing", time.monotonic() + 300
    while time.monotonic() < deadline:
        place = checkpoints_of(shared_base, "torn")
        if RunCheckpoints(place).steps() and list(place.glob(".writing-step_*")):
            break
    process.kill()
    process.wait()
    assert RunCheckpoints(place).latest_sound()[0] is not None
    train("run_name=torn", *WORDS, "resume=auto")
    assert_same(the_run(shared_base, "torn"), whole)
    assert not list(place.glob(".writing*")), "what the killed writer left is cleared away"


def until_some_steps(
    base: Path,
    name: str,
    trial: str = "",
    meanwhile: Callable[[], object] = lambda: time.sleep(0.01),
) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        metrics = list((base / "runs" / name).glob(f"*/{trial}metrics.csv"))
        if metrics and len(metrics[0].read_text().splitlines()) > 4:
            break
        meanwhile()


def once(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    process.send_signal(number)


def to_all(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """What a terminal does with Ctrl-C, and Slurm with SIGTERM: ranks and workers get it too."""
    os.killpg(process.pid, number)


def twice(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """What `timeout` does, and a launcher that passes on what a terminal has sent to all."""
    once(process, number)
    time.sleep(0.005)
    to_all(process, number)


def stopped_by(
    number: signal.Signals,
    base: Path,
    tiny: list[str],
    name: str,
    *words: str,
    send: Callable[..., None] = once,
) -> list[int]:
    """A run that gets a signal after some steps; it must end well. Returns the steps of its checkpoints."""
    process = start(base, tiny, name, "save_every=null", *words)
    until_some_steps(base, name)
    send(process, number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return RunCheckpoints(checkpoints_of(base, name)).steps()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_exit_cleanly(
    number: signal.Signals, whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    name = f"stopped-{number.name}"
    steps = stopped_by(number, shared_base, tiny, name)
    assert len(steps) == 1 and 4 <= steps[0] < STEPS
    train(f"run_name={name}", *WORDS, "resume=auto")
    assert_same(the_run(shared_base, name), whole)


@pytest.mark.parametrize(
    ("number", "send", "words"),
    [
        (signal.SIGINT, to_all, ["data.num_workers=2"]),
        (signal.SIGTERM, to_all, ["data.num_workers=2"]),
        (signal.SIGINT, twice, []),
        (signal.SIGHUP, to_all, ["data.num_workers=2"]),
        (
            signal.SIGHUP,
            to_all,
            ["trainer.devices=2", "data.rows_per_device=4", "data.num_workers=1"],
        ),
        (signal.SIGINT, once, ["trainer.devices=2", "data.rows_per_device=4"]),
        (
            signal.SIGINT,
            to_all,
            ["trainer.devices=2", "data.rows_per_device=4", "data.num_workers=1"],
        ),
        (
            signal.SIGTERM,
            to_all,
            ["trainer.devices=2", "data.rows_per_device=4", "data.num_workers=1"],
        ),
    ],
    ids=[
        "ctrl-c",
        "scancel",
        "timeout",
        "hang-up",
        "hang-up-ranks",
        "parent",
        "ctrl-c-ranks",
        "scancel-ranks",
    ],
)
def test_a_signal_to_all_its_processes_is_one_signal(
    number: signal.Signals,
    send: Callable[..., None],
    words: list[str],
    whole: Path,
    shared_base: Path,
    tiny: list[str],
    train: Train,
    request: pytest.FixtureRequest,
) -> None:
    name = f"all-{request.node.callspec.id}"
    steps = stopped_by(number, shared_base, tiny, name, *words, send=send)
    assert len(steps) == 1 and 4 <= steps[0] < STEPS
    mine, other = losses(the_run(shared_base, name)), losses(whole)
    assert sorted(mine) == list(range(1, steps[0] + 1))
    assert all(abs(float(mine[step]) - float(other[step])) < 2e-4 for step in mine)


def with_ranks(
    base: Path, tiny: list[str], name: str
) -> "tuple[subprocess.Popen[bytes], list[int]]":
    """A long run of two ranks after a few steps, and its ranks in order."""
    words = [
        "trainer.devices=2",
        "data.rows_per_device=4",
        "data.num_workers=1",
        "save_every=null",
        "max_steps=2000",
    ]
    process = start(base, tiny, name, *words)
    until_some_steps(base, name)
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "nanochat.train"], capture_output=True, text=True
    )
    return process, sorted(map(int, found.stdout.split()))


def test_ranks_whose_parent_is_killed_save_and_hold_the_folder_until_then(
    shared_base: Path, tiny: list[str]
) -> None:
    process, ranks = with_ranks(shared_base, tiny, "orphans")
    assert len(ranks) == 2
    process.kill()
    process.wait()
    folder, deadline = the_run(shared_base, "orphans"), time.monotonic() + 300
    while True:
        try:
            held = lock(folder)
            break
        except ValueError:
            assert time.monotonic() < deadline, "the ranks train on without their parent"
            time.sleep(0.005)
    held.close()
    (step,) = RunCheckpoints(folder / "checkpoints").steps()
    assert sorted(losses(folder)) == list(range(1, step + 1)) and step < 2000


def test_a_rank_that_is_killed_ends_the_others_and_is_named(
    shared_base: Path, tiny: list[str]
) -> None:
    process, ranks = with_ranks(shared_base, tiny, "one-killed")
    os.kill(ranks[1], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    last = said.decode().strip().splitlines()[-1]
    assert (
        process.returncode == 2 and "rank 1 was killed by SIGKILL" in last and "resume=auto" in last
    ), last
    lock(the_run(shared_base, "one-killed")).close()


@pytest.mark.parametrize(
    "words", [[], ["trainer.devices=2", "data.rows_per_device=4"]], ids=["one", "ranks"]
)
def test_a_closed_terminal_saves(words: list[str], shared_base: Path, tiny: list[str]) -> None:
    import pty
    import select

    name = f"terminal-{len(words)}"
    command = [
        sys.executable,
        "-m",
        "nanochat.train",
        *tiny,
        "max_steps=2000",
        "save_every=null",
        f"run_name={name}",
        *words,
    ]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(shared_base)
        os.execve(
            command[0],
            command,
            {**environment(shared_base), "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    until_some_steps(
        shared_base,
        name,
        meanwhile=lambda: select.select([terminal], [], [], 0.01)[0] and os.read(terminal, 65536),
    )
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    folder = the_run(shared_base, name)
    (step,) = RunCheckpoints(folder / "checkpoints").steps()
    assert os.waitstatus_to_exitcode(status) == 0 and sorted(losses(folder)) == list(
        range(1, step + 1)
    )


SLOW_STEPS = [
    "batch_tokens=65536",
    "data.num_workers=2",
    "save_every=null",
]  # a third of a second each


def until_it_says(process: "subprocess.Popen[bytes]", word: bytes) -> None:
    assert process.stdout is not None
    while (line := process.stdout.readline()) and word not in line:
        pass
    assert line


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_is_not_lost(
    number: signal.Signals, seconds: float, shared_base: Path, tiny: list[str]
) -> None:
    name = f"early-{number.name}-{seconds}"
    process = start(shared_base, tiny, name, *SLOW_STEPS, stdout=subprocess.PIPE)
    until_it_says(process, b"run folder")
    time.sleep(seconds)
    to_all(process, number)
    _, said = process.communicate(timeout=300)
    saved = RunCheckpoints(checkpoints_of(shared_base, name)).steps()
    ended = process.returncode, len(saved)
    assert ended in [(0, 1), (130 if number == signal.SIGINT else -number, 0)], said.decode()
    assert b"Traceback" not in said


@pytest.mark.parametrize("words", [[], ["trainer.devices=2"]], ids=["one", "ranks"])
def test_sigterm_again_and_again_is_one(
    words: list[str], shared_base: Path, tiny: list[str]
) -> None:
    name = f"again-{len(words)}"
    process = start(shared_base, tiny, name, *SLOW_STEPS, *words, stdout=subprocess.PIPE)
    until_it_says(process, b"step      1/")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:  # to its very end
        to_all(process, signal.SIGTERM)
        time.sleep(0.005)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0 and b"Traceback" not in said, said.decode()
    assert len(RunCheckpoints(checkpoints_of(shared_base, name)).steps()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_that_ends_by_the_same_signal_keeps_nothing_from_being_saved(
    number: signal.Signals, shared_base: Path, tiny: list[str]
) -> None:
    """`… 2>&1 | tee log`: tee is gone before the step is done."""
    name = f"tee-{number.name}"
    process = start(
        shared_base,
        tiny,
        name,
        *SLOW_STEPS,
        "log_every=1",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    until_it_says(process, b"step      1/")
    to_all(process, number)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    (step,) = RunCheckpoints(checkpoints_of(shared_base, name)).steps()
    assert sorted(losses(the_run(shared_base, name))) == list(range(1, step + 1))


@pytest.mark.parametrize("words", [[], ["trainer.devices=2"]], ids=["one", "ranks"])
def test_a_second_ctrl_c_stops_at_once(
    words: list[str], shared_base: Path, tiny: list[str]
) -> None:
    name = f"at-once-{len(words)}"
    process = start(
        shared_base, tiny, name, *SLOW_STEPS, *words, "batch_tokens=4194304", stdout=subprocess.PIPE
    )
    until_it_says(process, b"run folder")
    time.sleep(2.5)  # in the first step, which takes twenty seconds
    to_all(process, signal.SIGINT)
    time.sleep(2.5)
    to_all(process, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and said.decode().strip().endswith("error: interrupted"), (
        said.decode()
    )
    assert (
        b"Traceback" not in said and not RunCheckpoints(checkpoints_of(shared_base, name)).steps()
    )


def test_ctrl_c_in_the_last_evaluation_of_a_trial_ends_the_sweep(
    shared_base: Path, tiny: list[str]
) -> None:
    words = [
        "-m",
        "seed=1,2",
        "max_steps=4",
        "save_every=null",
        "sample.prompts=[a,b,c,d,e,f,g,h]",
        "sample.max_tokens=60",
    ]
    process = start(shared_base, tiny, "swept-late", *words)
    sweep, deadline = shared_base / "runs" / "swept-late", time.monotonic() + 300
    while not list(sweep.glob("*/0/checkpoints/step_000004")) and time.monotonic() < deadline:
        time.sleep(0.002)
    to_all(process, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and b"Traceback" not in said, said.decode()
    assert not list(sweep.glob("*/1/checkpoints/step_*"))


def test_ctrl_c_ends_a_sweep_which_goes_on_where_it_was(
    shared_base: Path, tiny: list[str], train: Train
) -> None:
    home, words = shared_base / "runs" / "swept", ["-m", "seed=1,2"]
    process = start(shared_base, tiny, "swept", *words)
    until_some_steps(shared_base, "swept", trial="0/")
    to_all(process, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert home.is_dir(), said.decode()
    (sweep,) = home.iterdir()
    goes_on = ["resume=auto", f"hydra.sweep.dir='{sweep}'"]
    assert process.returncode == 130 and " and ".join(goes_on) in said.decode(), said.decode()
    assert [p.name for p in sweep.glob("?")] == ["0"] and RunCheckpoints(
        sweep / "0" / "checkpoints"
    ).steps()[-1] < STEPS
    done = train(*words, *WORDS, "run_name=swept", *goes_on)
    assert "after step" in done.stdout
    assert sorted(p.parent.parent.name for p in sweep.glob(f"?/checkpoints/step_{STEPS:06d}")) == [
        "0",
        "1",
    ]
    train("-m", "run_name=swept", "seed=3,4", "max_steps=2", goes_on[1])
    assert sorted(losses(sweep / "0")) == list(range(1, STEPS + 1)), (
        "another sweep there takes no run's folder"
    )
    assert [len(losses(sweep / name)) for name in ("0-2", "1-2")] == [2, 2]


def test_stopped_in_bf16_it_ends_the_same(shared_base: Path, tiny: list[str], train: Train) -> None:
    words = ["compute.precision=bf16"]
    train("run_name=whole-bf16", *WORDS, *words)
    stopped_by(signal.SIGTERM, shared_base, [*tiny, *words], "stopped-bf16")
    train("run_name=stopped-bf16", *WORDS, *words, "resume=auto")
    assert_same(the_run(shared_base, "stopped-bf16"), the_run(shared_base, "whole-bf16"))


@pytest.mark.parametrize(
    "words", [["data.rows_per_device=8"], ["trainer.devices=2", "data.rows_per_device=2"]]
)
def test_resumed_on_other_hardware_it_trains_the_same_batches(
    words: list[str], whole: Path, shared_base: Path, tiny: list[str], train: Train
) -> None:
    name = f"moved-{len(words)}"
    (stopped,) = stopped_by(signal.SIGTERM, shared_base, tiny, name)
    train(f"run_name={name}", *WORDS, *words, "resume=auto")
    mine, other = losses(the_run(shared_base, name)), losses(whole)
    assert sorted(mine) == sorted(other)
    assert all(mine[step] == other[step] for step in range(1, stopped + 1))
    # the same batches in other shares: sums in another order, through up to 20 updates
    assert all(abs(float(mine[step]) - float(other[step])) < 2e-4 for step in mine)


def test_killed_in_its_last_evaluation_it_is_evaluated_when_resumed(
    whole: Path, shared_base: Path, train: Train
) -> None:
    import shutil

    copy = shutil.copytree(whole, whole.parent.parent / "late" / whole.name)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("run_name: whole", "run_name: late"))
    last = RunCheckpoints(copy / "checkpoints").path(STEPS)
    before = json.loads((last / "metrics.json").read_text())
    (last / "metrics.json").unlink()
    done = train("run_name=late", *WORDS, "resume=auto")
    assert json.loads((last / "metrics.json").read_text()) == before, done.stdout


def test_a_truncated_file_is_one_line_and_the_previous_checkpoint_loads(
    whole: Path, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(whole, tmp_path / "copy")
    checkpoints = RunCheckpoints(copy / "checkpoints")
    for name in ("model.safetensors", folder.STATE, "config.json"):
        steps = checkpoints.steps()
        victim = checkpoints.path(steps[-1]) / name
        data = victim.read_bytes()
        victim.write_bytes(data[: len(data) // 2])
        # the state is read by resuming alone, so weights whose state is damaged still load
        read = folder.read_state if name == folder.STATE else folder.load_gpt
        with pytest.raises(
            ValueError, match=f"{victim.name} has .* truncated.*undamaged one: .*step_"
        ):
            read(checkpoints.path(steps[-1]))
        found, problems = checkpoints.latest_sound()
        assert found == checkpoints.path(steps[-2]) and len(problems) == 1
        assert folder.load_gpt(found).config.n_layer == 2
        victim.write_bytes(data)


def test_a_finished_run_is_not_trained_again(whole: Path, train: Train) -> None:
    before = (whole / "metrics.csv").read_bytes()
    assert "this run is finished" in train("run_name=whole", *WORDS, "resume=auto").stdout
    assert (whole / "metrics.csv").read_bytes() == before


def test_resuming_with_other_settings_is_refused(whole: Path, train: Train) -> None:
    done = train("run_name=whole", *WORDS, f"resume={whole}", "seed=43", code=2)
    assert "continues that run as it was, but" in done.stderr and "seed: 42 -> 43" in done.stderr


def test_auto_starts_a_new_run_when_the_settings_differ_and_says_so(
    whole: Path, train: Train, shared_base: Path
) -> None:
    done = train("run_name=whole", "max_steps=2", "resume=auto", "save_every=null")
    assert "it differs in max_steps: 24 -> 2" in done.stdout
    import shutil

    (other,) = [
        p.parent
        for p in (shared_base / "runs" / "whole").glob("*/config.yaml")
        if p.parent != whole
    ]
    shutil.rmtree(other)


def test_a_run_folder_in_use_is_refused(whole: Path, train: Train) -> None:
    import fcntl

    with (whole / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert (
            "another process is training in"
            in train("run_name=whole", *WORDS, "resume=auto", code=2).stderr
        )


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    whole: Path, tiny: list[str], shared_base: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        for name in ("tokenizers", "token_shards"):
            (disk / name).symlink_to(shared_base / name)
        command = [
            sys.executable,
            "-m",
            "nanochat.train",
            *tiny,
            *WORDS,
            "checkpoints.keep_last=null",
            "run_name=full",
        ]
        done = subprocess.run(
            command, env=environment(disk), capture_output=True, text=True, timeout=120
        )
        (line,) = [x for x in done.stderr.splitlines() if "error:" in x] or [done.stderr[-2000:]]
        assert done.returncode == 2 and "no space left" in line and "resume=auto" in line
        found, _ = RunCheckpoints(checkpoints_of(disk, "full")).latest_sound()
        assert found is not None and folder.load_gpt(found).config.n_layer == 2
        assert not list(checkpoints_of(disk, "full").glob(".writing*"))
        mine = losses(the_run(disk, "full"))
        assert mine == {step: loss for step, loss in losses(whole).items() if step in mine}
    finally:
        subprocess.run(["umount", str(disk)], check=True)
