"""The content of the report's tables: results with errors, settings, cost, and published models."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.evals.results import read_results
from nanochat.report.chapter import Chapter
from nanochat.runs.run_folder import differences, fixed_settings

# from: facts sheet 6.5; the SFT model where there is one
PUBLISHED: dict[str, dict[str, Any]] = {
    "GPT-2, 124M": {"CORE": 0.1139},
    "GPT-2 XL, 1.6B": {"CORE": 0.256525},
    "nanochat d20": {
        "CORE": 0.2219,
        "ARC-Easy": 0.3876,
        "ARC-Challenge": 0.2807,
        "MMLU": 0.3151,
        "GSM8K": 0.0455,
        "HumanEval": 0.0854,
        "ChatCORE": 0.0884,
        "cost": "3.9 h, about $100",
    },
    "nanochat d32": {
        "CORE": 0.3168,
        "ARC-Easy": 0.6797,
        "ARC-Challenge": 0.4991,
        "MMLU": 0.4049,
        "GSM8K": 0.1274,
        "HumanEval": 0.1280,
        "ChatCORE": 0.2734,
        "cost": "31 h, about $800",
    },
    "nanochat d34": {"CORE": 0.3382, "cost": "100 h, about $2,500"},
}
# column of the table above -> our names for the same number
SAME = {
    "CORE": ("CORE",),
    "ARC-Easy": ("arc_easy_accuracy",),
    "ARC-Challenge": ("arc_challenge_accuracy",),
    "MMLU": ("mmlu_accuracy",),
    "GSM8K": ("gsm8k_accuracy",),
    "HumanEval": ("humaneval_accuracy",),
    "ChatCORE": ("chatcore_5", "chatcore"),
}
# numbers that are fractions of the questions
SHARES = re.compile(r"(accuracy(_\w+)?|pass@\d+)$|^core/")
# entries of a checkpoint's numbers that are no results: counts, and duplicates
COUNTS = re.compile(r"(tokens|error|_n|_stderr|_se|_of|_seconds)$")
# (phase, kind of machine) -> the default config, composed: resolved, and with its interpolations;
# None for an unknown phase
Defaults = Callable[[str, str], tuple[dict[str, Any], dict[str, Any]] | None]
# settings that a run inherits from its parent checkpoint
FROM_PARENT = ("model.", "arch.", "tokenizer.")


@dataclass(frozen=True)
class Outcome:
    """A number of an evaluation. `error` is its standard error over `items`
    questions, None if unknown."""

    value: float
    error: float | None = None
    items: int | None = None
    source: str = "while training"


def results(chapter: Chapter) -> dict[str, Outcome]:
    """The results of the newest evaluated checkpoint, by name. Those of `nanochat.evaluate`
    replace those of training."""
    if chapter.judged is None:
        return {}
    step = int(chapter.judged.name.removeprefix("step_"))
    numbers = {k.removeprefix("val/"): v for k, v in chapter.checkpoints.metrics(step).items()}
    found = outcomes(numbers, question_counts(chapter.config), "while training")
    for one in read_results(chapter.judged):
        found |= outcomes(one.results, {}, f"evaluate {one.evaluation}")
    return found


def outcomes(
    numbers: Mapping[str, Any], items: Mapping[str, int], source: str
) -> dict[str, Outcome]:
    """The results in `numbers`, with the errors stored next to them, else the binomial error
    over `items` questions."""
    found = {}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or COUNTS.search(name):
            continue
        stem = name.removesuffix("_accuracy")
        of = re.match(r"[\d.]+ of (\d+)", str(numbers.get(f"{stem}_of", "")))
        count = numbers.get(f"{stem}_n") or (int(of[1]) if of else items.get(name))
        error = next(
            (numbers[k] for n in (name, stem) for k in (f"{n}_stderr", f"{n}_se") if k in numbers),
            None,
        )
        if error is None and count and SHARES.search(name) and 0 <= value <= 1:
            error = math.sqrt(value * (1 - value) / count)  # an upper bound for pass@k
        found[name] = Outcome(float(value), error, int(count) if count else None, source)
    return found


def question_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """Number of questions behind each result of training: `limit`, or fewer if the task
    is known to be smaller."""
    evals = config.get("evals") or {}
    tasks = evals.get("tasks") or config.get("tasks") or {}
    found = {}
    for name, task in (tasks.get("of") or {}).items():
        sizes = [n for n in (tasks.get("limit"), (task or {}).get("size")) if n]
        if sizes:
            found[f"{name}_accuracy"] = min(sizes)
    passes = evals.get("pass_at_k") or config.get("pass_at_k") or {}
    if limit := passes.get("limit"):
        found |= {f"pass@{2**k}": limit for k in range(12)} | {"greedy_accuracy": limit}
    return found


def as_text(name: str, value: float) -> str:
    """
    >>> as_text("arc_easy_accuracy", 0.25), as_text("bpb", 1.23456), as_text("loss", 12345.6)
    ('25.0 %', '1.2346', '12,346')
    """
    if SHARES.search(name):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def error_text(name: str, one: Outcome) -> str:
    if one.error is None:
        return ""
    return f"± {100 * one.error:.1f}" if SHARES.search(name) else f"± {one.error:.4f}"


def off_default(config: dict[str, Any], defaults: Defaults) -> list[tuple[str, str, str]] | None:
    """(setting, value, default) where a run differs from the defaults of its phase on its machine.
    None if that phase is unknown. Settings inherited from the parent checkpoint are left out.
    """
    phase, machine = config.get("phase"), (config.get("trainer") or {}).get("accelerator")
    composed = defaults(str(phase), str(machine))
    if composed is None:
        return None
    mine, (theirs, raw) = fixed_settings(config), map(fixed_settings, composed)
    same = {key: re.fullmatch(r"\$\{([\w.]+)\}", str(text)) for key, text in raw.items()}
    # a default that refers to another setting takes the value that this run gives that setting
    theirs = {
        key: mine[m[1]] if (m := same.get(key)) and m[1] in mine else value
        for key, value in theirs.items()
    }
    skipped = (*(FROM_PARENT if config.get("init_from") else ()), "init_from", "run_name")
    found = [
        (key, plain(value), plain(theirs[key]) if key in theirs else "")
        for key, value in sorted(mine.items())
        if not key.startswith(skipped)
        and value != theirs.get(key)
        and not (key not in theirs and value in (None, "", [], {}))
        and plain(value) != plain(theirs.get(key))
    ]
    return folded(found)


def folded(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """All settings of a group that the default lacks, such as a task, in one row.

    >>> folded([("a.b._target_", "x.Y", ""), ("a.b.size", "3", ""), ("a.c", "1", "2")])
    [('a.b', 'Y: size 3', ''), ('a.c', '1', '2')]
    """
    things = {
        key.removesuffix("._target_"): value
        for key, value, default in rows
        if not default and key.endswith("._target_")
    }
    found: dict[str, tuple[str, str, str]] = {}
    for key, value, default in rows:
        thing = next((t for t in things if key.startswith(f"{t}.")), None)
        if thing is None:
            found[key] = (key, value, default)
        elif key == f"{thing}._target_":
            found[thing] = (thing, f"{value.rpartition('.')[2]}:", "")
        elif key != f"{thing}.name":
            before = found[thing][1]
            comma = "" if before.endswith(":") else ","
            found[thing] = (thing, f"{before}{comma} {key.removeprefix(thing + '.')} {value}", "")
    return list(found.values())


def plain(value: Any) -> str:
    """
    >>> plain(None), plain(250000.0), plain(["a", 1]), plain(0.02)
    ('null', '250,000', '[a, 1]', '0.02')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def compared(old: Chapter, new: Chapter) -> dict[str, Any]:
    """What differs between two runs of one phase: settings, and results with the
    noise of the questions."""
    before, after = results(old), results(new)
    rows = []
    for name in [n for n in after if n in before]:
        a, b = before[name], after[name]
        noise = (
            math.hypot(a.error, b.error) if a.error is not None and b.error is not None else None
        )
        gap = b.value - a.value
        text = f"{100 * gap:+.1f}" if SHARES.search(name) else f"{gap:+.4f}"
        verdict = "" if noise is None else "within" if abs(gap) <= 2 * noise else "beyond"
        shown = noise and (f"± {200 * noise:.1f}" if SHARES.search(name) else f"± {2 * noise:.4f}")
        rows.append(
            {
                "name": name,
                "before": as_text(name, a.value),
                "after": as_text(name, b.value),
                "gap": text,
                "noise": shown or "",
                "verdict": verdict,
            }
        )
    return {
        "old": old,
        "new": new,
        "rows": rows,
        "settings": differences(old.config, new.config),
        "same_code": (old.record.get("code") or {}).get("commit")
        == (new.record.get("code") or {}).get("commit"),
    }


def tokens(chapter: Chapter) -> float | None:
    """Tokens that the loss was computed on so far."""
    ledger = chapter.summary.get("ledger") or {}
    if ledger.get("tokens_trained"):
        return float(ledger["tokens_trained"])
    if trained := chapter.curves.get("rl/trained_tokens"):
        return sum(value for _, value in trained)
    seen = chapter.curves.get("train/tokens")
    return seen[-1][1] if seen else None


def left(chapter: Chapter) -> float | None:
    """Seconds of training left, estimated from the last steps; None if it is not running."""
    paces = [value for _, value in chapter.curves.get("perf/step_seconds", [])[-20:]]
    if chapter.info.state != "training" or not chapter.info.steps or not paces:
        return None
    return max(0, chapter.info.steps - chapter.step) * sum(paces) / len(paces)


def middle(curve: list[tuple[int, float]] | None) -> float | None:
    """The median value, which compilation and pauses hardly affect."""
    values = sorted(value for _, value in curve or [])
    return values[len(values) // 2] if values else None
