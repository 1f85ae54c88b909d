"""The sections of `docs/nanochat-facts.md` that code, configs, tests and documents cite are
there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHEET = ROOT / "docs" / "nanochat-facts.md"
SECTIONS = set(re.findall(r"^###? (\d+(?:\.\d+)?)\.? ", SHEET.read_text(), re.M))
NUMBER = r"\d+(?:\.\d+)?"
# "facts sheet 2.2, step 2, and 2.1", "facts sheet, section 0", "the facts sheet's scale tables
# (1.9)"
CITATION = re.compile(
    r"facts sheet(?:'s(?: \w+){0,3})?[,:]? ?\(?(?:sections? )?"
    rf"(?P<cited>{NUMBER}(?:,? step \d+)?(?:(?:,|,? and| to) {NUMBER}(?![\w%])(?:,? step \d+)?)*)",
    re.I,
)
FILES = [
    path
    for top in ("src", "conf", "tests", "docs", "experiments", "README.md", "CONTRIBUTING.md")
    for path in [ROOT / top, *(ROOT / top).rglob("*")]
    if path.suffix in (".py", ".yaml", ".md", ".sh") and path != Path(__file__)
]


def on_one_line(text: str) -> str:
    """`text` without line breaks, and without the comment marks that follow them."""
    return re.sub(r"\s*\n\s*(?:#+ )?", " ", text)


def cited(text: str) -> list[str]:
    """The section numbers that `text` cites."""
    found = []
    for citation in CITATION.finditer(on_one_line(text)):
        found += re.findall(NUMBER, re.sub(r" step \d+", "", citation["cited"]))
    return found


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("# from: facts sheet 5.3, dense bf16", ["5.3"]),
        ("(facts sheet 2.2, step 2, and 2.1)", ["2.2", "2.1"]),
        ("Facts sheet 1.4 step 4 and 1.6: all", ["1.4", "1.6"]),
        ("of the facts\n    # sheet (0, 1.3 to 1.5), one", ["0", "1.3", "1.5"]),
        ("the facts sheet's scale tables (1.9)", ["1.9"]),
        ("facts sheet, section 0", ["0"]),
        ("facts sheet 5.4, 5.10, 11).", ["5.4", "5.10", "11"]),
        ("a facts sheet", []),
    ],
)
def test_citations_are_found(text: str, sections: list[str]) -> None:
    assert cited(text) == sections


def test_every_section_that_is_cited_is_in_the_sheet() -> None:
    missing, count = [], 0
    for path in FILES:
        sections = cited(path.read_text())
        count += len(sections)
        missing += [
            (str(path.relative_to(ROOT)), section)
            for section in sections
            if section not in SECTIONS
        ]
    assert not missing
    assert count > 100  # a pattern that finds nothing would pass


def test_the_sheet_names_its_own_sections() -> None:
    for section in re.findall(rf"sections? ({NUMBER})", SHEET.read_text()):
        assert section in SECTIONS
