"""The network's room knows nothing of the rest, and nothing of decoding."""

import ast
from pathlib import Path

import nanochat.gpt

ROOM = Path(nanochat.gpt.__file__).parent


def test_gpt_imports_nothing_of_ours():
    for file in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                ours = name.split(".")[0] == "nanochat"
                assert not ours or name.startswith("nanochat.gpt"), f"{file.name}: {name}"


def test_the_network_has_no_mode_for_decoding():
    nodes = list(ast.walk(ast.parse((ROOM / "model.py").read_text())))
    names = {n.id for n in nodes if isinstance(n, ast.Name)}
    names |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    assert "embed" in names and not [name for name in names if "frozen" in name or "cache" in name]
