"""The items of an evaluation, in a real browser: found, filtered, compared, and
never more than text."""

import json
from pathlib import Path

import pytest

from nanochat.evals.items import Item
from nanochat.report.items_page import paired_rows, summary, write_items_page
from tests.report.lineages import HOSTILE, make_lineage
from tests.report.test_report import pages


def items(right: int, text: str = "fox", count: int = 2400) -> list[Item]:
    """Of two tasks in turn; the first `right` of them are right."""
    found = []
    for i in range(count):
        correct = i < right
        if i % 2:
            scores = {"nats": (1.5, 2.0), "tokens": (3, 4)}
            given = Item(
                "choice",
                i,
                f"<|bos|>Question {i}: ",
                (" yes", text),
                0,
                0 if correct else 1,
                float(correct),
                scores,
            )
        else:
            given = Item(
                "free", i, f"{text} {i}" * 40, (), "7", "7" if correct else text, float(correct)
            )
        found.append(given)
    return found


def test_a_row_for_each_item_with_both_sides(tmp_path: Path) -> None:
    sides = {"a": items(100), "b": items(150)[1:]}
    rows = paired_rows(sides)
    assert len(rows) == 2400 and rows[0]["sides"][1] is None
    found = {row["task"]: row for row in summary(rows, 2)}
    assert found["choice"]["gained"] == 25 and found["choice"]["lost"] == 0
    # 50 of 1,200: sqrt(p (1 - p) / 1199) = 0.58 %
    assert found["choice"]["cells"][0] == ("4.2 %", "± 0.6")
    write_items_page(tmp_path / "i.html", sides)
    lines = [json.loads(line) for line in (tmp_path / "i.jsonl").read_text().splitlines()]
    assert lines[1]["sides"]["b"] == {
        "answer": 0,
        "correct": 1.0,
        "scores": {"nats": [1.5, 2.0], "tokens": [3, 4]},
    }
    assert list(lines[0]["sides"]) == ["a"]
    with pytest.raises(ValueError, match="no items to show"):
        write_items_page(tmp_path / "i.html", {"a": []})


def test_no_text_ends_the_script(tmp_path: Path) -> None:
    write_items_page(tmp_path / "i.html", {HOSTILE: items(2, HOSTILE, 4)})
    page = (tmp_path / "i.html").read_text()
    assert page.count("</script>") == page.count("<script") == 2
    assert "<img" not in page and "\x1b" not in page and "\u202e" not in page


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):
    """Opens a page: at a width, with every request and every message of the
    browser written down."""
    contexts = []

    def show(path: Path, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 812}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.heard = []
        page.on("request", lambda request: page.heard.append(request.url))
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()


@pytest.mark.slow
def test_items_are_filtered_and_compared_in_a_browser(shown, tmp_path: Path) -> None:
    path = tmp_path / "i.html"
    write_items_page(path, {"a": items(100, HOSTILE), "b": items(150, HOSTILE)})
    page = shown(path)
    found = page.locator("#found")

    def choose(said: str, **wanted: str) -> None:
        for name, value in wanted.items():
            page.locator(f"#{name}").fill(value) if name == "words" else page.select_option(
                f"#{name}", value
            )
        page.wait_for_function(
            "text => document.getElementById('found').textContent === text", arg=said, timeout=5000
        )

    assert found.text_content() == "2,400 of 2,400"
    assert page.locator(".item").count() < 200, "a screenful at a time"
    choose("50 of 2,400", verdict="changed")
    choose("25 of 2,400", task="choice")
    choose("25 of 2,400", verdict="gained")
    choose("0 of 2,400", verdict="lost")
    choose("1,150 of 2,400", verdict="wrong 0")
    choose("1 of 2,400", words="question 1001:")
    card = page.locator(".item")
    assert card.locator("b.special").text_content() == "<|bos|>"
    assert card.locator(".prompt mark").text_content() == "␣", "the space at the end of the prompt"
    assert card.locator("tr").nth(1).locator(".badge").all_text_contents() == ["gold"]
    heads = card.locator("th").all_text_contents()
    assert heads == ["", "choice", "nats", "tokens"], (
        "both sides agree on the scores: a column each"
    )
    choose("1,200 of 2,400", task="free", verdict="all", words="")
    first = page.locator(".item").first
    first.get_by_text("show all").click()
    assert len(first.locator(".prompt").text_content()) > len(HOSTILE) * 39
    assert page.title() == "a and b · items"
    assert page.heard == [path.as_uri()], (
        "it asks nobody, runs nothing else and complains of nothing"
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_fit_a_phone(shown, tmp_path: Path, scheme: str) -> None:
    last = make_lineage(tmp_path, HOSTILE)
    (tmp_path / "r.html").write_text(pages(last, tmp_path)[0])
    write_items_page(
        tmp_path / "i.html", {"a" * 60: items(3, HOSTILE, 40), "b": items(9, "x" * 300, 40)}
    )
    for name in ("r.html", "i.html"):
        page = shown(tmp_path / name, 375, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == 375, name
        assert page.heard == [(tmp_path / name).as_uri()]
        assert "owned" not in page.title()
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(251, 250, 248)", "dark": "rgb(20, 22, 26)"}[scheme]
