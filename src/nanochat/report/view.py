"""The content of the report as plain values for its templates."""

import math
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from nanochat.callbacks.report import short_time
from nanochat.gpt import counts
from nanochat.report import facts, sections
from nanochat.report.chapter import Chapter
from nanochat.report.chart import short

TITLES = {
    "phases": "Phases",
    "curves": "Curves",
    "evaluations": "Evaluations",
    "before": "The run before",
    "published": "Published models",
    "samples": "Samples",
    "conversation": "A conversation",
    "tokens": "Tokens",
    "settings": "Settings",
    "machine": "Machine and code",
}
Price = float | None  # price of the machine per hour


def report_view(
    chapters: Sequence[Chapter],
    defaults: facts.Defaults,
    *,
    comparisons: Sequence[dict[str, Any]] = (),
    price: Price = None,
    talk: dict[str, Any] | None = None,
    refresh: int | None = None,
) -> dict[str, Any]:
    """The view of a lineage, oldest run first. `refresh`: the page reloads
    after so many seconds."""
    last = chapters[-1]
    found = [facts.results(one) for one in chapters]
    phases = [phase(one, some, price, defaults) for one, some in zip(chapters, found, strict=True)]
    shown = {
        "phases": phases,
        "curves": [chart for one in chapters for chart in sections.charts_of(one)],
        "evaluations": sections.evaluations(found),
        "before": [sections.comparison(one) for one in comparisons],
        "published": sections.published(last, found),
        "samples": [sample for one in chapters for sample in sections.samples_of(one)],
        "conversation": talk,
        "tokens": [ledger for one in chapters if (ledger := sections.ledger_of(one))],
        "settings": phases,
        "machine": sections.machines(chapters),
    }
    return {
        **shown,
        "title": last.info.name.split("/")[0],
        "story": story(chapters),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "refresh": refresh,
        "tiles": [*tiles(chapters, found, price), *against(last, comparisons)],
        "tokenizer": tokenizer_lines(chapters[0]),
        "times": times(chapters),
        "keys": list(dict.fromkeys(key for one in phases for key in one["by_key"])),
        "sections": [(id, TITLES[id]) for id, there in shown.items() if there],
    }


def story(chapters: Sequence[Chapter]) -> str:
    """The lineage in one line."""
    first, last = chapters[0], chapters[-1]
    began = f"{Path(first.began).name or first.began} → " if first.began else "tokenizer → "
    going = f"; continued by {', '.join(last.info.children)}" if last.info.children else ""
    return began + " → ".join(one.info.phase for one in chapters) + going


def tiles(
    chapters: Sequence[Chapter], found: Sequence[dict[str, facts.Outcome]], price: Price
) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the headline: result, size, duration, cost."""
    last = chapters[-1]
    steps = f"step {last.step:,} of {last.info.steps:,}" if last.info.steps else f"step {last.step}"
    rest = facts.left(last)
    made = [("state", last.info.state, steps + (f", {short_time(rest)} left" if rest else ""))]
    head = headline(last, found[-1])
    if head:
        more = (
            f"{head['name']}, before training {head['before']}" if head["before"] else head["name"]
        )
        made.append(("result", head["text"], f"{head['error']} {more}".strip()))
    config = next((c.gpt_config for c in reversed(chapters) if c.gpt_config), None)
    if config is not None:
        size = short(counts.parameters(config)["total"])
        shape = f"{config.n_layer} layers of {config.n_embd}, context {config.sequence_len:,}"
        made.append(("parameters", size, f"{shape}, vocabulary {config.vocab_size:,}"))
    trained = [t for t in map(facts.tokens, chapters) if t]
    if trained:
        made.append(("tokens trained", short(sum(trained)), f"in {len(trained)} phases"))
    seconds = sum(one.seconds for one in chapters)
    wall = [one.wall_seconds for one in chapters]
    whole = f"{short_time(sum(w or 0 for w in wall))} with preparation and evaluation"
    made.append(("training time", short_time(seconds), "" if None in wall else whole))
    cost = sum(paid_seconds(one) for one in chapters) / 3600 * price if price else None
    asking = "price_per_hour=… of the machine gives it"
    made.append(
        ("cost", money(cost), f"at {price:g} an hour")
        if price and cost is not None
        else ("cost", "not known", asking)
    )
    return made


def against(last: Chapter, comparisons: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The headline result compared with that of the run before, if there is one."""
    for one in comparisons:
        name = result_name(last)
        for row in one["rows"] if one["new"] is last else ():
            if row["name"] == name:
                noise = f"{row['verdict']} the noise of the questions" if row["verdict"] else ""
                return [("against the run before", row["gap"], noise or f"was {row['before']}")]
    return []


def tokenizer_lines(first: Chapter) -> list[tuple[str, str]]:
    """Facts about the tokenizer."""
    settings = first.config.get("tokenizer") or {}
    config, found = first.gpt_config, facts.results(first)
    lines = [("kind", str(settings.get("kind", "not recorded")))]
    if config is not None:
        lines.append(("vocabulary", f"{config.vocab_size:,}"))
    if {"bpb", "loss"} <= found.keys() and found["bpb"].value:  # of the same text
        size = found["loss"].value / math.log(2) / found["bpb"].value
        lines.append(("bytes a token", f"{size:.2f}"))
    return lines


def paid_seconds(chapter: Chapter) -> float:
    """Seconds that the machine was occupied: from start to end, or for a resumed
    run only its training."""
    return chapter.wall_seconds if chapter.wall_seconds is not None else chapter.seconds


def money(value: float | None) -> str:
    """
    >>> money(0.0123), money(92.5)
    ('0.012', '92.50')
    """
    return "" if value is None else f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def result_name(chapter: Chapter) -> str:
    """The result by which a run is judged; an error rate becomes an accuracy."""
    metric = str((chapter.config.get("checkpoints") or {}).get("best_metric") or "val/bpb")
    return "greedy_accuracy" if metric == "val/error" else metric.removeprefix("val/")


def headline(chapter: Chapter, found: dict[str, facts.Outcome]) -> dict[str, Any] | None:
    """The result by which a run is judged, before and after training."""
    name = result_name(chapter)
    if name not in found:
        return None
    start = chapter.checkpoints.metrics(0).get(f"val/{name}")
    words = {"bpb": "bits per byte, validation", "greedy_accuracy": "right answers, held-out"}
    return {
        "name": words.get(name, name),
        "text": facts.as_text(name, found[name].value),
        "error": facts.error_text(name, found[name]),
        "before": facts.as_text(name, start) if isinstance(start, int | float) else None,
    }


def phase(
    chapter: Chapter, found: dict[str, facts.Outcome], price: Price, defaults: facts.Defaults
) -> dict[str, Any]:
    """One run: progress, duration, speed and result."""
    info, curves = chapter.info, chapter.curves
    lines = {"steps": f"{chapter.step:,}" + (f" of {info.steps:,}" if info.steps else "")}
    if trained := facts.tokens(chapter):
        lines["tokens"] = f"{trained:,.0f}"
    if batch := (chapter.record.get("plan") or {}).get("batch_tokens"):
        lines["tokens/step"] = f"{batch:,}"
    lines["training"] = short_time(chapter.seconds)
    if chapter.wall_seconds is not None:
        lines["start to end"] = short_time(chapter.wall_seconds)
    if price:
        lines["cost"] = money(paid_seconds(chapter) / 3600 * price)
    if speed := facts.middle(curves.get("perf/tokens_per_second")):
        lines["tokens/s"] = f"{speed:,.0f}"
    if mfu := facts.middle(curves.get("perf/mfu")):
        lines["MFU"] = f"{100 * mfu:.1f} %"
    if memory := curves.get("perf/peak_memory_gib"):
        lines["peak memory"] = f"{max(value for _, value in memory):.1f} GiB"
    if stops := len(chapter.record.get("resumptions") or []):
        lines["resumed"] = f"{stops} times" if stops > 1 else "once"
    lines["on disk"] = f"{info.size / 1e6:,.0f} MB"
    return {
        "phase": info.phase,
        "name": info.name,
        "state": info.state,
        "headline": headline(chapter, found),
        "lines": list(lines.items()),
        "by_key": lines,
        "notes": chapter.notes,
        "command": typed(chapter.record.get("command") or ""),
        "changed": facts.off_default(chapter.config, defaults),
        "config": yaml.safe_dump(chapter.config, sort_keys=False, allow_unicode=True),
    }


def typed(command: str) -> str:
    r"""A recorded command without the quotes that Hydra needs.

    >>> typed("python -m nanochat.train 'resume='\"'\"'auto'\"'\"'' seed=1")
    'python -m nanochat.train resume=auto seed=1'
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    return shlex.join(re.sub(r"^([^=']+=)'(.*)'$", r"\1\2", word) for word in words)


def times(chapters: Sequence[Chapter]) -> list[dict[str, Any]]:
    total = sum(map(paid_seconds, chapters)) or 1.0
    return [
        {
            "phase": one.info.phase,
            "text": short_time(paid_seconds(one)),
            "share": max(round(paid_seconds(one) / total, 4), 0.001),
            "colour": number % 5,
        }
        for number, one in enumerate(chapters)
    ]
