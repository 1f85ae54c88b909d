"""No text file is read or written in the encoding of the machine, which on Windows is not UTF-8."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nanochat"
OTHERS = ("os", "self", "tarfile", "gzip")  # whose `open` is another


def without_encoding(code: str) -> Iterator[str]:
    """Calls of read_text, write_text and open for a text, and of subprocess with text=True, that
    name no encoding."""
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        of = isinstance(call.func, ast.Attribute)
        name = call.func.attr if of else getattr(call.func, "id", "")
        owner = ast.unparse(call.func.value) if of else ""
        words = [a.value for a in call.args if isinstance(a, ast.Constant)]
        modes = [w for w in (*words, given.get("mode", "")) if isinstance(w, str)]
        binary = any("b" in mode for mode in modes if len(mode) <= 4)
        files = name == "open" and owner not in OTHERS and not owner.endswith("folder")
        texts = of and name in ("read_text", "write_text")
        if (
            texts or (files and not binary) or given.get("text") == "True"
        ) and "encoding" not in given:
            yield ast.unparse(call)


@pytest.mark.parametrize(
    "code", ["p.read_text(%s)", "open(p%s)", "p.open(%s)", "p.write_text(x%s)", "run(text=True%s)"]
)
def test_a_call_without_an_encoding_is_found(code: str) -> None:
    assert list(without_encoding(code % "")) == [code % ""]
    more = "encoding='utf-8'" if "(%s" in code else ", encoding='utf-8'"
    assert not list(without_encoding(code % more))


def test_every_text_is_utf_8() -> None:
    found = {
        f"{path.relative_to(SOURCE)}: {call}"
        for path in SOURCE.rglob("*.py")
        if "sandbox" not in path.parts  # Linux alone, and outputs of programs
        for call in without_encoding(path.read_text(encoding="utf-8"))
    }
    assert not found
