"""The items of an evaluation on one page, for one checkpoint or several next to each other: prompt,
choices, scores, answer, right or wrong.

The items are JSON in the page. Its one script, the only one that the page's content security
policy allows, renders them as text, one screen at a time: thousands stay usable, and text of a
model never becomes markup.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nanochat.evals.items import Item
from nanochat.evals.uncertainty import standard_error
from nanochat.report.render import TEMPLATES, render, visible

RIGHT = 0.5  # above it most samples of an answer are correct
Sides = Mapping[str, Sequence[Item]]  # name of a checkpoint -> its items


def write_items_page(out: Path, sides: Sides, *, note: str = "") -> None:
    """Write `out` (FILE.html) and FILE.jsonl with one object for each item. ValueError if there are
    no items, or for another suffix."""
    if out.suffix != ".html":
        raise ValueError(
            f"out={out} must end in .html; the items are also written next to it as JSONL"
        )
    if not any(sides.values()):
        raise ValueError(
            "no items to show: only evaluations that ask questions have them, as arc_easy or core"
        )
    rows = paired_rows(sides)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            of = {name: one for name, one in zip(sides, row["sides"], strict=True) if one}
            file.write(json.dumps({**row, "sides": of}, ensure_ascii=False) + "\n")
    script = (TEMPLATES / "items.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = list(sides)
    view = {
        "title": " and ".join(names),
        "note": note,
        "names": names,
        "summary": summary(rows, len(names)),
        "count": len(rows),
        "policy": f"sha256-{digest}",
        "script": Markup(script),
        "data": as_script_data({"names": names, "items": rows}),
    }
    out.write_text(render("items.html", view), encoding="utf-8")


def paired_rows(sides: Sides) -> list[dict[str, Any]]:
    """One row for each item, in the order of the first side: the question and the answer of each
    side, None where it was not asked."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for number, items in enumerate(sides.values()):
        for item in items:
            asked = {
                "task": item.task,
                "index": item.index,
                "cluster": item.cluster,
                "prompt": item.prompt,
                "choices": list(item.choices),
                "gold": item.gold,
                "sides": [None] * len(sides),
            }
            row = rows.setdefault((item.task, item.index), asked)
            answer = {"answer": item.answer, "correct": item.correct, "scores": item.scores}
            if item.prompt != row["prompt"]:  # prompts differ: another template or tokenizer
                answer["prompt"] = item.prompt
            row["sides"][number] = answer
    return list(rows.values())


def summary(rows: Sequence[dict[str, Any]], sides: int) -> list[dict[str, Any]]:
    """For each task: the number of items, the accuracy of each side, and how many items only the
    first or only the last side has right."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row["sides"] for row in rows if row["task"] == task]
        of = [row["cluster"] or row["index"] for row in rows if row["task"] == task]
        cells = []
        for number in range(sides):
            scores = [one[number]["correct"] for one in mine if one[number]]
            clusters = [name for name, one in zip(of, mine, strict=True) if one[number]]
            mean = f"{100 * sum(scores) / len(scores):.1f} %" if scores else ""
            error = f"± {100 * standard_error(scores, clusters):.1f}" if len(scores) > 1 else ""
            cells.append((mean, error))
        both = (
            [(a["correct"] > RIGHT, b["correct"] > RIGHT) for a, *_, b in mine if a and b]
            if sides > 1
            else []
        )
        found.append(
            {
                "task": task,
                "items": len(mine),
                "cells": cells,
                "gained": both.count((False, True)),
                "lost": both.count((True, False)),
            }
        )
    return found


def as_script_data(value: Any) -> Markup:
    """JSON that is safe inside a script element: no character that could end the element,
    and no invisible one."""

    def shown(node: Any) -> Any:
        if isinstance(node, str):
            return visible(node)
        if isinstance(node, Mapping):
            return {shown(key): shown(one) for key, one in node.items()}
        return [shown(one) for one in node] if isinstance(node, list | tuple) else node

    text = json.dumps(shown(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
