"""The folder of one run: creating a new one, finding the one to resume, and the record of how it
was made."""

import json
import os
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanochat.checkpoint.runs import FOLDER_TIME, now, started
from nanochat.runs.earlier import in_todays_words
from nanochat.runtime.locks import try_lock

CONFIG, RECORD = "config.yaml", "record.json"
SAMPLES = "samples.jsonl"  # what the model wrote while it was trained: step, prompt, text
SUMMARY = "summary.json"  # of the last time that the run stopped or ended
# Settings that may differ between a run and its resumption: where it runs and what it shows, but
# not what it computes.
FREE_KEYS = frozenset(
    (
        "resume debug dry_run logger progress log_every save_every eval_every sample_every "
        "checkpoints eval_tokens eval_at_start tasks sample paths size recipe force evals "
        "pass_at_k val_task price_per_gpu_hour solve budget"
    ).split()
)
FREE_INSIDE = {
    "data": frozenset(
        {"rows_per_device", "num_workers", "prepare_workers", "shards_dir", "rendered_dir"}
    ),
    "trainer": frozenset(
        {
            "_target_",
            "accelerator",
            "devices",
            "num_nodes",
            "strategy",
            "max_time",
            "benchmark",
            "profiler",
            "detect_anomaly",
            "enable_model_summary",
        }
    ),
    "compute": frozenset(
        {"compile", "attention", "checkpointing", "card", "memory_gb", "trial", "expected_mfu"}
    ),
    "callbacks": frozenset({"report", "save", "evaluate", "sample"}),
}
# Settings that determine the length of a run, and those that must be given to keep the rest of the
# plan when it becomes longer.
LENGTH = frozenset({"max_steps", "plan.tokens", "plan.flops", "batch_tokens"})


@dataclass
class RunFolder:
    path: Path
    resumed: bool  # continues what an earlier process wrote here
    lock: Any  # held open while the process lives

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def fixed_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a composed config that determine the numbers of a run, flattened to dotted
    keys."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}{key}.")
        else:
            flat[prefix[:-1]] = node

    kept = {k: v for k, v in config.items() if k not in FREE_KEYS}
    for name, free in FREE_INSIDE.items():
        if isinstance(kept.get(name), dict):
            kept[name] = {k: v for k, v in kept[name].items() if k not in free}
    walk(kept, "")
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for each setting that differs and determines the numbers.

    A parameter group that the version of `old` did not have is left out: no network had parameters
    of that role then.
    """
    # through YAML, in which a tuple becomes a list
    a, b = fixed_settings(old), fixed_settings(yaml.safe_load(yaml.safe_dump(new)))
    groups = (old.get("optim") or {}).get("groups") or {}

    def is_later(key: str) -> bool:
        found = re.match(r"optim\.groups\.(\w+)\.", key)
        return found is not None and bool(groups) and found[1] not in groups

    return [
        f"{key}: {a.get(key)} -> {b.get(key)}"
        for key in sorted(set(a) | set(b))
        if a.get(key) != b.get(key) and not is_later(key)
    ]


def open_run(config: dict[str, Any], runs: Path, *, folder: Path | None = None) -> RunFolder:
    """A new folder `runs/NAME/TIME`, or with `resume` the one to continue. ValueError if that is
    another run.

    `resume` is false, `auto` (the newest run of this name with these settings, else a new one), or
    a run's folder, which max_steps may make longer (`start.check_plan`). `folder` is the place of a
    new run, used for the trials of a sweep.
    """
    resume, home = config.get("resume"), runs / str(config["run_name"])
    if resume not in (None, False, "auto"):
        path = check_resume(resume, runs)
        assert path is not None
        changed = differences(read_config(path), config)
        # whether another length is allowed is checked when it is planned
        if config.get("max_steps") is not None:
            changed = [line for line in changed if line.partition(":")[0] not in LENGTH]
        if changed:
            raise ValueError(
                f"resume={resume} continues that run as it was, but {changed[0]}; drop that "
                "setting, or use init_from for a new run"
            )
        return RunFolder(path, True, lock(path))
    if resume == "auto":
        places = (
            [folder]
            if folder is not None
            else sorted(
                (p for p in home.iterdir() if p.is_dir()),
                key=lambda p: (started(p), p.name),
                reverse=True,
            )
            if home.is_dir()
            else []
        )
        for path in places:
            if not (path / CONFIG).is_file():
                continue
            changed = differences(read_config(path), config)
            if not changed:
                return RunFolder(path, True, lock(path))
            print(
                f"resume=auto: not {path.name}, it differs in {changed[0]}"
                + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
            )
    # a trial's folder exists already, as Hydra made it; if it contains a run, that is another one
    place = folder or home / now().strftime(f"{FOLDER_TIME}Z")
    new, n = place, 1
    while new.exists() if folder is None else (new / CONFIG).exists():
        n += 1
        new = place.with_name(f"{place.name}-{n}")
    new.mkdir(parents=True, exist_ok=True)
    folder = new
    return RunFolder(folder, False, lock(folder))


def check_resume(resume: Any, runs: Path) -> Path | None:
    """The run folder that `resume` names, None if it names none. ValueError if there is no such
    folder."""
    if resume in (None, False, "auto"):
        return None
    path = Path(str(resume)).expanduser()
    path = path if path.is_dir() else runs / str(resume)
    if not (path / CONFIG).is_file():
        raise ValueError(
            f"resume={resume} is not a run folder; give auto, a folder under {runs}, or "
            "init_from=… to start a new run from weights"
        )
    return path


def lock(path: Path) -> Any:
    """Lock the run folder for this process and the processes it passes the lock to. ValueError if
    another live process holds it."""
    handle = (path / ".lock").open("w", encoding="utf-8")
    if try_lock(handle) is False:
        raise ValueError(
            f"another process is training in {path}; wait for it, or give this run another "
            "run_name=…"
        )
    return not_forked(handle)


def not_forked(handle: Any) -> Any:
    """A lock that forked processes release: a worker may outlive the training process
    by seconds."""
    # the lock is held exactly as long as its run folder is referenced
    still = weakref.ref(handle)

    def let_go() -> None:
        if (inherited := still()) is not None:
            inherited.close()

    if hasattr(os, "register_at_fork"):  # where processes are forked
        os.register_at_fork(after_in_child=let_go)
    return handle


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run. ValueError if the file is empty or damaged, e.g. by a full disk or a
    crash of the machine."""
    return in_todays_words(_parsed(path / CONFIG, yaml.safe_load, yaml.YAMLError))


def _parsed(file: Path, parse: Callable[[str], Any], error: type[Exception]) -> dict[str, Any]:
    try:
        found = parse(file.read_text(encoding="utf-8"))
    except (error, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} is empty or damaged, so this run cannot be resumed; move {file.parent} away, "
            "or start another run with resume=false"
        )
    return found


def write_record(folder: RunFolder, config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write config.yaml, record.json (command, code, hardware, versions, plan) and code.diff; a
    resumption is appended to `resumptions`."""
    code = dict(facts["code"])
    diff = code.pop("diff", "")
    if folder.resumed and (folder.path / RECORD).is_file():
        record = _parsed(folder.path / RECORD, json.loads, ValueError)
        number = len(record.setdefault("resumptions", [])) + 1
        if diff and diff != _read(folder.path / "code.diff"):
            code["diff_file"] = f"code-resumption-{number}.diff"
        resumption = {"started": facts["started"], "command": facts["command"], "code": code}
        if record.get("plan") != facts["plan"]:  # made longer
            resumption["plan_before"], record["plan"] = record.get("plan"), facts["plan"]
            _replace(folder.path / CONFIG, yaml.safe_dump(config, sort_keys=False))
        record["resumptions"].append(resumption)
    else:
        _replace(folder.path / CONFIG, yaml.safe_dump(config, sort_keys=False))
        if diff:
            code["diff_file"] = "code.diff"
        record = {**facts, "code": code}
    if "diff_file" in code:
        (folder.path / code["diff_file"]).write_text(diff, encoding="utf-8")
    _replace(folder.path / RECORD, json.dumps(record, indent=2, default=str) + "\n")


def write_summary(folder: RunFolder, step: int, seconds: float, ledger: dict[str, int]) -> None:
    """What a run that stops or ends has used: training seconds, and every token by its fate."""
    found = {"step": step, "seconds": seconds, "ended": now().isoformat(), "ledger": ledger}
    _replace(folder.path / SUMMARY, json.dumps(found, indent=2) + "\n")


def add_to_record(folder: RunFolder, facts: dict[str, Any]) -> None:
    """Write facts that are known at the end of a run."""
    file = folder.path / RECORD
    if file.is_file():
        record = _parsed(file, json.loads, ValueError) | facts
        _replace(file, json.dumps(record, indent=2, default=str) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file atomically, so that a kill at any time leaves the old or the new content."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read_record(folder: RunFolder) -> dict[str, Any]:
    """record.json with the code's diff; empty if the process was killed before it was written."""
    file = folder.path / RECORD
    record = _parsed(file, json.loads, ValueError) if file.is_file() else {}
    if name := record.get("code", {}).get("diff_file"):
        record["code"]["diff"] = _read(folder.path / name)
    return record


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
