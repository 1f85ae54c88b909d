"""The sections after the phases (curves, results, samples, tokens, machine), as plain
values for the templates."""

from collections.abc import Sequence
from typing import Any

from nanochat.report import facts
from nanochat.report.chapter import Chapter, Curve
from nanochat.report.chart import Stroke, draw, smoothed

# reference lines in the CORE chart
MARKS = {name: row["CORE"] for name, row in facts.PUBLISHED.items() if name.startswith("GPT-2")}
MOST_TEXT = 1500  # guess: characters shown of one sample


def charts_of(chapter: Chapter) -> list[dict[str, Any]]:
    """Charts of loss or reward, bits per byte and accuracy, where there is more than one point."""
    curves = chapter.curves

    def several(keys: Sequence[str]) -> list[Stroke]:
        return [
            Stroke(key.removeprefix("val/").removesuffix("_accuracy"), curves[key], dots=True)
            for key in keys
            if len(curves.get(key, ())) > 1
        ]

    def noisy(key: str, name: str) -> list[Stroke]:
        curve: Curve = curves.get(key, [])
        if len(curve) < 2:
            return []
        return [Stroke(f"{name}, each step", curve, faint=True), Stroke(name, smoothed(curve))]

    # the loss of reinforcement learning is about 0 however good the model is
    first = noisy("rl/reward", "reward") or noisy("train/loss", "training loss")
    shares = [key for key in curves if key.startswith("val/") and facts.SHARES.search(key)]
    wanted = {
        first[-1].name if first else "": first,
        "bits per byte, validation": several(["val/bpb"]),
        "CORE": several(["val/CORE"]),
        "right answers, held-out": several(shares[:5]),
        "length of answers, tokens": noisy("rl/length", "length"),
    }
    return [
        {
            "phase": chapter.info.phase,
            "title": title,
            "svg": draw(f"{chapter.info.phase}, {title}", lines, MARKS if title == "CORE" else {}),
            "key": [f"{one.name} {one.curve[-1][1]:.4g}" for one in lines if not one.faint],
            "ends": [
                {
                    "name": one.name,
                    "first": f"{one.curve[0][1]:.4g} at step {one.curve[0][0]:,}",
                    "last": f"{one.curve[-1][1]:.4g} at step {one.curve[-1][0]:,}",
                }
                for one in lines
                if not one.faint
            ],
        }
        for title, lines in wanted.items()
        if lines
    ]


def evaluations(found: Sequence[dict[str, facts.Outcome]]) -> list[dict[str, Any]]:
    """A row for each result, a column for each phase."""
    names = list(dict.fromkeys(name for one in found for name in one))
    return [{"name": name, "cells": [result_cell(name, one) for one in found]} for name in names]


def result_cell(name: str, found: dict[str, facts.Outcome]) -> dict[str, str] | None:
    if name not in found:
        return None
    one = found[name]
    items = f", {one.items:,} questions" if one.items else ""
    return {
        "text": facts.as_text(name, one.value),
        "error": facts.error_text(name, one),
        "source": one.source + items,
    }


def comparison(one: dict[str, Any]) -> dict[str, Any]:
    old, new = one["old"], one["new"]
    code = (
        "Same commit."
        if one["same_code"]
        else f"Commits {commit_of(old.record)} and {commit_of(new.record)}."
    )
    return {
        "phase": new.info.phase,
        "old": old.info.name,
        "new": new.info.name,
        "rows": one["rows"],
        "settings": one["settings"],
        "code": code,
    }


def published(last: Chapter, found: Sequence[dict[str, facts.Outcome]]) -> dict[str, Any]:
    """This run above published results of GPT-2 and the original."""
    mine = {}
    for column, names in facts.SAME.items():
        for one in found:  # the last phase that has it
            name = next((n for n in names if n in one), None)
            if name is not None:
                mine[column] = share_text(column, one[name].value)
    rows = [
        {
            "name": name,
            "mine": False,
            "cost": row.get("cost"),
            "cells": [share_text(c, row.get(c)) for c in facts.SAME],
        }
        for name, row in facts.PUBLISHED.items()
    ]
    ours = {
        "name": last.info.name.split("/")[0],
        "mine": True,
        "cost": None,
        "cells": [mine.get(c) for c in facts.SAME],
    }
    note = "As published by their authors (facts sheet 6.5); the d20 and d32 after SFT."
    if not mine:
        note += (
            " This run was not judged by any of these; `python -m nanochat.evaluate "
            "ckpt=RUN@latest evals=…` does it."
        )
    return {"columns": list(facts.SAME), "rows": [ours, *rows], "note": note}


def share_text(column: str, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.4f}" if column.endswith("CORE") else f"{100 * value:.1f} %"


def samples_of(chapter: Chapter) -> list[dict[str, Any]]:
    return [
        {
            "phase": chapter.info.phase,
            "step": one.get("step", "?"),
            "prompt": str(one.get("prompt", ""))[-MOST_TEXT:],
            "text": str(one.get("text", ""))[:MOST_TEXT],
            "reward": f"{one['reward']:g}" if isinstance(one.get("reward"), int | float) else None,
        }
        for one in chapter.samples()
    ]


def ledger_of(chapter: Chapter) -> dict[str, Any] | None:
    """Every token that was read, and how it was used."""
    ledger = chapter.summary.get("ledger") or {}
    fates = ("trained", "context", "masked", "trimmed", "cropped", "dropped")
    parts = [
        {"name": name, "count": count, "text": f"{count:,}", "colour": min(number, 4)}
        for number, name in enumerate(f for f in fates if f"tokens_{f}" in ledger)
        if (count := ledger[f"tokens_{name}"])
    ]
    if not parts:
        trained = facts.tokens(chapter)
        if trained is None:
            return None
        return {
            "phase": chapter.info.phase,
            "said": f"{trained:,.0f} trained; the ledger is written at the end",
            "parts": [],
            "rest": [],
        }
    rest = {
        key.removeprefix("tokens_").replace("_", " "): f"{value:,}"
        for key, value in ledger.items()
        if key.removeprefix("tokens_") not in (*fates, "read")
    }
    return {
        "phase": chapter.info.phase,
        "said": f"{ledger.get('tokens_read', 0):,} read",
        "parts": parts,
        "rest": list(rest.items()),
    }


def machines(chapters: Sequence[Chapter]) -> dict[str, Any]:
    """Hardware, code and versions; runs that agree in all of them share a column."""
    columns: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for one in chapters:
        columns.setdefault(tuple(machine(one).items()), []).append(one.info.phase)
    names = list(dict.fromkeys(key for column in columns for key, _ in column))
    return {
        "phases": [", ".join(phases) for phases in columns.values()],
        "rows": [(name, [dict(column).get(name, "") for column in columns]) for name in names],
    }


def machine(chapter: Chapter) -> dict[str, str]:
    record = chapter.record
    hardware, data = record.get("hardware") or {}, record.get("data") or {}
    found = {"device": str(hardware.get("device", "not recorded"))}
    if processes := hardware.get("processes"):
        found["processes"] = str(processes)
    if memory := hardware.get("memory_bytes"):
        found["memory"] = f"{memory / 2**30:.0f} GiB"
    found["commit"] = commit_of(record)
    found |= {name: str(version) for name, version in (record.get("versions") or {}).items()}
    found["seed"] = str(record.get("seed", ""))
    found["tokenizer"] = str(data.get("tokenizer", ""))
    return found


def commit_of(record: dict[str, Any]) -> str:
    code = record.get("code") or {}
    changes = ", with changes that are not committed" if code.get("dirty") else ""
    return f"{(code.get('commit') or 'not recorded')[:12]}{changes}"
