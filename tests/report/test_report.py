"""The page of a run says what its folders hold, whatever is missing in them and
whatever a model wrote."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from nanochat.evals.results import Keeper
from nanochat.report import chapter, facts
from nanochat.report.__main__ import defaults
from nanochat.report.compare import comparisons
from nanochat.report.conversation import talk_with, turns
from nanochat.report.render import TEMPLATES, render
from nanochat.report.view import report_view
from nanochat.runs.run_folder import lock
from tests import processes
from tests.report.lineages import HOSTILE, config, make_lineage, make_run
from tests.train.conftest import environment


def pages(path: Path, runs: Path, **more) -> tuple[str, str]:
    view = report_view(chapter.chain(path, runs), defaults, **more)
    return render("report.html", view), render("report.md", view)


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.words += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def test_the_numbers_of_a_lineage(tmp_path: Path) -> None:
    last = make_lineage(tmp_path)
    chapters = chapter.chain(last, tmp_path)
    assert [one.info.phase for one in chapters] == ["base", "sft"]
    found = facts.results(chapters[1])["mine_accuracy"]
    assert found.value == 0.8 and found.items == 100
    assert found.error == pytest.approx(0.04)  # sqrt(0.8 * 0.2 / 100)
    html, markdown = pages(last, tmp_path, price=3600.0)
    for page in (html, markdown):
        for said in ("1.2500", "0.7500", "80.0 %", "± 4.0", "12s", "4,000", "5,000 read", "0.2565"):
            assert said in page, said
    assert facts.tokens(chapters[0]) == 4000 and chapters[0].seconds == 12.5
    assert "tokenizer → base → sft" in html and "01-01_00-00-00Z" in html


def test_settings_that_differ_from_the_defaults(tmp_path: Path) -> None:
    changed = facts.off_default(config("base", "model=d4", "batch_tokens=4096", "seed=7"), defaults)
    assert changed == [
        ("batch_tokens", "4,096", "null"),
        ("model.depth", "4", "20"),
        ("seed", "7", "42"),
    ]
    assert facts.off_default(config("base"), defaults) == []
    assert facts.off_default({"phase": "a phase of someone else"}, defaults) is None


def test_what_is_missing_or_damaged_is_named_and_the_rest_reported(tmp_path: Path) -> None:
    last = make_lineage(tmp_path)
    base = next(tmp_path.glob("base-d1/*"))
    (base / "record.json").write_text("{")
    (base / "summary.json").write_text("[")
    with (base / "metrics.csv").open("a") as file:
        file.write("5,1.0")  # a row that is being written
    html, _ = pages(last, tmp_path)
    assert "record.json is damaged" in html and "summary.json is damaged" in html
    assert "80.0 %" in html and chapter.chain(last, tmp_path)[0].seconds == 12.0
    base.rename(tmp_path / "elsewhere")
    assert [one.info.phase for one in chapter.chain(last, tmp_path)] == ["sft"]
    assert "step_000004 → sft" in pages(last, tmp_path)[0]


def test_a_base_folder_that_has_moved(tmp_path: Path) -> None:
    last = make_lineage(tmp_path / "runs")
    (tmp_path / "runs").rename(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "other")
    (tmp_path / "other").mkdir(exist_ok=True)
    moved = tmp_path / "other" / last.relative_to(tmp_path / "runs")
    found = chapter.chain(moved, tmp_path / "other")
    assert [one.info.phase for one in found] == ["base", "sft"]


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    last = make_lineage(tmp_path)
    record = json.loads((last / "record.json").read_text())
    record["plan"]["steps"] = 10
    (last / "record.json").write_text(json.dumps(record))
    held = lock(last)
    html, _ = pages(last, tmp_path, refresh=7)
    assert 'http-equiv="refresh" content="7"' in html
    assert "step 4 of 10, 18s left" in html  # 6 steps of 3 s
    held.close()
    assert "stopped" in pages(last, tmp_path)[0]


def test_the_run_before_and_the_noise_of_its_questions(tmp_path: Path) -> None:
    last = make_lineage(tmp_path)
    words = ("+task@evals.tasks.of.mine=identity", "evals.tasks.limit=100", "seed=5")
    metrics = {"val/bpb": 0.8, "val/mine_accuracy": 0.7}
    make_run(tmp_path, "sft-d1/2026-01-01_12-00-00Z", "sft", metrics=metrics, words=words)
    make_run(tmp_path, "sft-d1/2026-01-03_00-00-00Z", "sft", metrics=metrics)  # later
    (found,) = comparisons(chapter.chain(last, tmp_path), "auto", tmp_path)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["bpb"]["gap"] == "-0.0500" and rows["bpb"]["verdict"] == ""
    # 2 * sqrt(0.8 * 0.2 / 100 + 0.7 * 0.3 / 100) = 0.1217
    assert rows["mine_accuracy"]["gap"] == "+10.0" and rows["mine_accuracy"]["noise"] == "± 12.2"
    assert rows["mine_accuracy"]["verdict"] == "within"
    assert "seed: 5 -> 42" in found["settings"]
    html, markdown = pages(last, tmp_path, comparisons=[found])
    assert "± 12.2: within it" in html and "± 12.2: within it" in markdown
    assert "better" not in re.sub(r"does not show.*one", "", html)


def test_what_evaluate_stored_stands_in_place_of_training(tmp_path: Path) -> None:
    last = make_lineage(tmp_path)
    checkpoint = last / "checkpoints/step_000004"
    results = {"mine_accuracy": 0.5, "mine_of": "200 of 400", "CORE": 0.1, "core": ["a text"]}
    assert Keeper(checkpoint, "mine", {"settings": 1}).keep(results, 1.0) is None
    (checkpoint / "evals/mine-2.json").write_text("{")
    found = facts.results(chapter.chain(last, tmp_path)[1])
    assert found["mine_accuracy"] == facts.Outcome(0.5, pytest.approx(0.025), 400, "evaluate mine")
    assert found["bpb"].value == 0.75
    row = re.search(r'<tr class="mine">.*?</tr>', pages(last, tmp_path)[0], re.S)
    assert row and "0.1000" in row[0]


def test_hostile_text_changes_no_tag(tmp_path: Path) -> None:
    plain, evil = make_lineage(tmp_path / "a"), make_lineage(tmp_path / "b", HOSTILE)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "fox"}]
    evil_messages = [messages[0], {"role": "assistant", "content": HOSTILE}]
    found = []
    for path, said in ((plain, messages), (evil, evil_messages)):
        talk = {"checkpoint": "x", "turns": turns(said)}
        found.append(pages(path, path.parents[1], talk=talk))
    (html, _), (evil_html, evil_markdown) = found
    assert Tags(evil_html).tags == Tags(html).tags
    assert "\x1b" not in evil_html + evil_markdown and "\u202e" not in evil_html + evil_markdown
    links = {"link_open", "image", "html_block", "html_inline"}
    for token in MarkdownIt().enable("table").parse(evil_markdown):
        inside = {child.type for child in token.children or []}
        assert not links & {token.type, *inside}
        assert token.type != "heading_open" or token.tag in ("h1", "h2", "h3")
    assert "\n# heading\n" not in re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", evil_markdown)


def test_nothing_is_asked_of_anywhere(tmp_path: Path) -> None:
    html, _ = pages(make_lineage(tmp_path), tmp_path)
    page = Tags(html)
    assert page.words and all(word.startswith("#") for word in page.words)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html


def test_every_colour_can_be_read() -> None:
    """4.5 to 1 for text, as WCAG 2.1 (1.4.3) asks; 3 to 1 for lines (1.4.11)."""
    css = (TEMPLATES / "page.css").read_text()
    for scheme in re.findall(r":root \{(.*?)\n\s*\}", css, re.S):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for ground in ("back", "card", "shade"):
            for name in ("ink", "soft", "good", "bad", "going", "c0", "c3"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
            for name in ("c1", "c2", "c4"):
                assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


def contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """Writes both files and the conversation, the latter once; a run that is
    not there is one line."""
    make_lineage(tmp_path / "runs")

    def report(*words: str):
        words = ("nanochat.report", *words)
        return processes.run(list(words), env=environment(tmp_path), cwd=tmp_path)

    done = report("run=sft-d1", "ask=Hello, you!", "ask=Why?", "price_per_hour=2", "out=a/b.html")
    assert done.returncode == 0, done.stderr
    assert "Hello, you!" in (tmp_path / "a/b.html").read_text()
    assert "Why?" in (tmp_path / "a/b.md").read_text()
    kept = tmp_path / "a/b.talk.json"
    found = json.loads(kept.read_text())
    found["messages"][1]["content"] = "said before"
    kept.write_text(json.dumps(found))
    last = chapter.read_chapter(chapter.find("sft-d1", tmp_path / "runs"), tmp_path / "runs")
    again = talk_with(last, ["Hello, you!", "Why?"], kept, device="cpu", precision="fp32")
    assert again and again["turns"][1]["parts"] == [("text", "said before")]
    wrong = report("run=sft-d2")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: run=sft-d2 is not a run in ")
    assert wrong.stderr.count("\n") == 1
