"""Every setting of every command, set to wrong values: `python experiments/wrong_inputs/fuzz.py
--commands 500 --seed 1`.

First the whole grid (every key of every composition x KINDS) goes through the check that a command
makes when it has composed. Then commands drawn from the grid run as processes, dry and real, of
tiny models. Nothing may end in a traceback, take more than SECONDS of processor time or be accepted
without being recorded in the run's own config. Prints a table and what broke the rule; exit code 1
if anything did.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests import processes  # noqa: E402

KINDS = [
    "-1",
    "0",
    "2.7",
    "1e30",
    "nan",
    "inf",
    "abc",
    "true",
    "null",
    "[1,2]",
    "{a:1}",
    "99999999999999999999",
]
SECONDS = 10  # of processor time, which does not depend on what else the machine does
TINY = [
    "trainer=cpu",
    "model.depth=1",
    "model.aspect_ratio=32",
    "model.head_dim=32",
    "model.sequence_len=64",
    "max_steps=1",
    "compute.compile=false",
    "eval_every=null",
    "save_every=null",
    "sample_every=null",
    "progress=none",
]
PARENT = [
    "trainer=cpu",
    "max_steps=1",
    "compute.compile=false",
    "eval_every=null",
    "sample_every=null",
    "init_from={ckpt}",
    "eval_at_start=false",
]
CHAT = [
    "data=jsonl",
    "data.path={talks}",
    "data.val_path={talks}",
    "data.num_workers=0",
    "data.prepare_workers=0",
    "data.rows_per_device=1",
    "batch_tokens=128",
    "evals.tasks.limit=2",
]
COMPOSITIONS: dict[str, tuple[str, list[str]]] = {
    "base": (
        "train",
        [
            "+phase=base",
            *TINY,
            "data=local",
            "data.path={text}",
            "data.documents=line",
            "data.num_workers=0",
            "data.prepare_workers=0",
            "data.val_fraction=0.3",
            "tokenizer=char",
            "tokenizer.vocab_size=auto",
            "batch_tokens=128",
            "eval_tokens=128",
            "sample.prompts=[a]",
            "sample.max_tokens=2",
        ],
    ),
    "mid": ("train", ["+phase=mid", *PARENT, *CHAT]),
    "sft": ("train", ["+phase=sft", *PARENT, *CHAT]),
    "sft_classic": ("train", ["+phase=sft_classic", *PARENT, *CHAT]),
    "rl": (
        "train",
        [
            "+phase=rl",
            *PARENT[:2],
            *PARENT[3:],
            "task=arithmetic",
            "task.size=20",
            "task.digits=1",
            "rollout.questions=2",
            "rollout.samples=2",
            "rollout.max_tokens=4",
            "preflight.run=false",
            "evals.pass_at_k.limit=2",
            "evals.pass_at_k.samples=2",
            "sample.prompts=[]",
        ],
    ),
    "sample": ("sample", ["ckpt={ckpt}", "max_tokens=2", "device=cpu"]),
    "cli": ("cli", ["ckpt={ckpt}", "prompt=a", "max_tokens=2", "device=cpu"]),
    "chat": ("chat", ["ckpt={ckpt}"]),
    "bench": (
        "bench",
        [
            "ckpt={ckpt}",
            "prompt_tokens=4",
            "decode_tokens=4",
            "batches=[1]",
            "repeats=1",
            "device=cpu",
        ],
    ),
    "evaluate": (
        "evaluate",
        ["ckpt={ckpt}", "evals=sample", "evals.sample.max_tokens=2", "device=cpu"],
    ),
    "data": (
        "data",
        [
            "data=local",
            "data.path={text}",
            "data.documents=line",
            "data.prepare_workers=0",
            "data.val_fraction=0.3",
            "tokenizer=char",
            "model.sequence_len=64",
            "batch_tokens=128",
        ],
    ),
    "tokenizer": (
        "tokenizer",
        [
            "data=local",
            "data.path={text}",
            "data.documents=line",
            "data.val_fraction=0.3",
            "kind=char",
        ],
    ),
}
ONLY_CHECKED = {"chat"}  # would serve for ever


def make_inputs(place: Path) -> dict[str, str]:
    """A text, conversations, and a checkpoint that was never trained."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tests.test_additions import save_untrained

    words = "the river and the stone go over a green light house near the small night".split()
    draw = random.Random(0)
    (place / "text.txt").write_text(
        "\n".join(" ".join(draw.choices(words, k=30)) for _ in range(80)) + "\n"
    )
    talk = [{"role": "user", "content": "Write river."}, {"role": "assistant", "content": "river"}]
    (place / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for _ in range(8)))
    save_untrained(place / "base/runs/it/2026-01-01_00-00-00/checkpoints/step_000001")
    checkpoint = place / "base/runs/it/2026-01-01_00-00-00"
    return {
        "text": str(place / "text.txt"),
        "talks": str(place / "talks.jsonl"),
        "ckpt": str(checkpoint),
    }


def composed(command: str, words: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from nanochat.commands.app import as_typed
    from nanochat.commands.configs import compose_command

    cfg = compose_command(command, [as_typed(word) for word in words])
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def keys_of(command: str, values: dict[str, Any]) -> list[str]:
    from nanochat.commands.schema import COMMANDS
    from nanochat.runtime.settings import listed

    found = [key for key, *_ in listed(values, COMMANDS[command])]
    groups = {key.rpartition(".")[0] for key in found} - {""}
    return sorted({*found, *groups})


def change(values: Any, key: str, value: Any) -> Any:
    head, dot, rest = key.partition(".")
    return {**values, head: change(values.get(head) or {}, rest, value) if dot else value}


def grid(
    filled: dict[str, list[str]],
) -> tuple[Counter[str], list[tuple[str, str, str, bool]], list[str]]:
    """Every key x kind through the check. Counts, (composition, key, kind, accepted), and what
    raised anything but ValueError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from nanochat.commands.schema import COMMANDS
    from nanochat.runtime.settings import check

    read = {
        kind: OmegaConf.create({"x": OverridesParser.create().parse_override(f"x={kind}").value()})
        for kind in KINDS
    }
    counts: Counter[str] = Counter()
    cases, broken = [], []
    for name, (command, _) in COMPOSITIONS.items():
        values = composed(command, filled[name])
        for key in keys_of(command, values):
            for kind in KINDS:
                value = OmegaConf.to_container(read[kind])["x"]  # type: ignore[index,call-overload]
                try:
                    check(change(values, key, value), COMMANDS[command])
                    accepted = True
                except ValueError as error:
                    accepted = False
                    if "\n" in str(error) or key.rpartition(".")[2] not in str(error):
                        broken.append(f"{name} {key}={kind}: {error}")
                except Exception as error:
                    accepted = False
                    broken.append(f"{name} {key}={kind}: {type(error).__name__}: {error}")
                counts["accepted" if accepted else "refused"] += 1
                cases.append((name, key, kind, accepted))
    return counts, cases, broken


def run(command: str, words: list[str], place: Path) -> tuple[str, str]:
    """(what came of it, the last line of stderr) of one command."""
    environment = {
        **os.environ,
        "NANOCHAT_BASE_DIR": str(place / "base"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    started = time.monotonic()
    try:
        done = processes.run(
            [f"nanochat.{command}", *words], env=environment, cwd=place, timeout=SECONDS * 12
        )
    except Exception as error:  # TimeoutExpired
        return "hang", f"{type(error).__name__} after {time.monotonic() - started:.0f} s"
    lines = done.stderr.strip().splitlines()
    if "Traceback" in done.stderr or done.returncode not in (0, 2):
        return "traceback", f"exit {done.returncode}: " + (lines[-1] if lines else "")
    if done.returncode == 2:
        errors = [line for line in lines if line.startswith("error: ")]
        return (
            "refused" if len(errors) == 1 and len(lines) == 1 else "more than a line"
        ), " / ".join(lines)[:300]
    return "accepted", ""


def recorded(place: Path, name: str, key: str) -> Any:
    """The value of a key in the config that the run of this name recorded."""
    (path,) = place.glob(f"base/runs/{name}/*/config.yaml")
    value: Any = yaml.safe_load(path.read_text())
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def one(
    number: int, case: tuple[str, str, str, bool], filled: dict[str, list[str]], place: Path
) -> tuple[str, str, str]:
    name, key, kind, _ = case
    command, dry = COMPOSITIONS[name][0], number % 2 == 0
    words, run_name = list(filled[name]), f"fuzz-{number}"
    if command == "train":
        words += ["dry_run=true" if dry else "dry_run=false", f"run_name={run_name}"]
    from nanochat.runtime.paths import conf_dir

    plus = "" if (conf_dir() / key).is_dir() else "++"
    words = [word for word in words if not word.lstrip("+").startswith(f"{key}=")] + [
        f"{plus}{key}={kind}"
    ]
    what, line = run(command, words, place)
    if what == "accepted" and command == "train" and not dry and key not in ("run_name", "dry_run"):
        try:
            found = recorded(place, run_name, key)
        except ValueError:
            found = "no run"
        same = (
            str(found).lower() == kind
            or (kind == "null" and found is None)
            or str(found).endswith(f"/{kind}")
        )
        with contextlib.suppress(TypeError, ValueError):
            same = same or float(str(found).rpartition("/")[2]) == float(kind)
        if not same and kind not in ("[1,2]", "{a:1}"):
            what, line = "accepted without effect", f"recorded {found!r}"
    shown = f"{name}{' dry' if dry and command == 'train' else ''}: {key}={kind}"
    return what, shown, line


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--commands", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["NANOCHAT_BASE_DIR"] = str(place / "base")
        inputs = make_inputs(place)
        filled = {
            name: [word.format(**inputs) for word in words]
            for name, (_, words) in COMPOSITIONS.items()
        }
        counts, cases, broken = grid(filled)
        print(
            f"grid: {sum(counts.values()):,} values, {counts['refused']:,} refused, "
            f"{counts['accepted']:,} accepted, {len(broken)} broken"
        )
        draw = random.Random(asked.seed)
        commands = [case for case in cases if case[0] not in ONLY_CHECKED]
        # half of those that the check accepts, so that what comes after it is tried as well
        accepted = [case for case in commands if case[3]]
        chosen = draw.sample(accepted, min(asked.commands // 2, len(accepted)))
        chosen += draw.sample([c for c in commands if not c[3]], asked.commands - len(chosen))
        found: Counter[tuple[str, str]] = Counter()
        with concurrent.futures.ThreadPoolExecutor(asked.workers) as pool:
            started = time.monotonic()
            for case, (what, shown, line) in zip(
                chosen,
                pool.map(lambda pair: one(*pair, filled, place), enumerate(chosen)),
                strict=True,
            ):
                found[case[0], what] += 1
                if what not in ("refused", "accepted"):
                    broken.append(f"{shown}: {what}: {line}")
                    print(broken[-1], flush=True)
                elif "-v" in os.environ.get("FUZZ", ""):
                    print(f"{what}: {shown}: {line}", flush=True)
        kinds = [
            "refused",
            "accepted",
            "accepted without effect",
            "more than a line",
            "traceback",
            "hang",
        ]
        print(
            f"\n{len(chosen):,} commands, seed {asked.seed}, {time.monotonic() - started:.0f} s\n"
        )
        print("| commands | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
        for name in COMPOSITIONS:
            print(f"| {name} | " + " | ".join(str(found[name, kind]) for kind in kinds) + " |")
        print("\n".join(["", *broken]))
    return 1 if broken else 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
