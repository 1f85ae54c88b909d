"""One name for one thing: no class is defined twice, no function is named as a class but for a
capital.

`python tests/test_names.py` lists what there is.
"""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "nanochat"

# class or function -> why it stays. A name that is no longer there twice is taken off.
TWICE = {"Options": "every update rule declares its own"}
LIKE_A_CLASS = {
    # they take the keys that are typed (data.path=…) apart; configs of earlier runs name them
    **dict.fromkeys(["jsonl", "shards", "pydocs"], "makes the data whose source is the class"),
    "save": "folder.save writes a checkpoint, the callback calls it every N steps",
    "bits_per_byte": "the number; the class is its evaluation",
}


def definitions() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Public classes and functions of all modules: name -> where."""
    classes: dict[str, list[str]] = defaultdict(list)
    functions: dict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(where)
            elif isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef
            ) and not node.name.startswith("_"):
                functions[node.name].append(where)
    return classes, functions


def twice() -> dict[str, list[str]]:
    return {name: where for name, where in definitions()[0].items() if len(where) > 1}


def like_a_class() -> dict[str, list[str]]:
    classes, functions = definitions()
    lowered = {name.lower(): name for name in classes}
    return {
        name: [*where, *classes[lowered[plain]]]
        for name, where in functions.items()
        if (plain := name.replace("_", "")) in lowered
    }


def test_no_class_is_defined_twice() -> None:
    assert not {name: where for name, where in twice().items() if name not in TWICE}


def test_no_function_is_named_as_a_class() -> None:
    assert not {name: where for name, where in like_a_class().items() if name not in LIKE_A_CLASS}


if __name__ == "__main__":
    for name, where in {**twice(), **like_a_class()}.items():
        print(f"{name:14} {', '.join(where)}")
