"""Imports follow the floors of CONTRIBUTING, which `experiments/structure/draw.py` draws."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location(
    "draw", ROOT / "experiments" / "structure" / "draw.py"
)
assert spec and spec.loader
draw = importlib.util.module_from_spec(spec)
sys.modules["draw"] = draw  # dataclasses look their module up
spec.loader.exec_module(draw)


@pytest.fixture(scope="module")
def code():
    return draw.read(ROOT / "src")


def test_every_import_between_rooms_points_down(code) -> None:
    assert draw.upward(code, draw.floors()) == []


def test_no_file_and_no_room_imports_itself_by_way_of_others(code) -> None:
    assert draw.cycles((one.source, one.target) for one in code.imports) == []
    assert draw.cycles(code.between_rooms()) == []


def test_every_room_is_on_one_floor(code) -> None:
    on_floors = [room for rooms in draw.floors() for room in rooms]
    assert len(set(on_floors)) == len(on_floors)
    assert set(code.rooms()) <= set(on_floors)


def test_what_points_up_or_round_is_found(tmp_path: Path) -> None:
    """Three rooms: an import that points up, one in a function that closes a circle, a name in a
    string."""
    for name, text in {
        "train.py": "from nanochat.high import a\n",
        "high/a.py": "def f():\n    import nanochat.low.b as b\n    return b\n",
        "low/b.py": (
            '"""nanochat.high.a"""\nfrom nanochat.side import c\nNAME = '
            '"nanochat.high.a.f"\nprint()\n'
        ),
        "side/c.py": "from nanochat.low.b import NAME\nx = [int(n) for n in '12']\n",
    }.items():
        (tmp_path / "nanochat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nanochat" / name).write_text(text)
    code = draw.read(tmp_path)
    assert code.rooms() == {"commands": 1, "high": 3, "low": 4, "side": 2}
    (up,) = draw.upward(code, [["commands"], ["high"], ["low", "side"]])
    assert (up.source, up.target, up.how) == (
        "nanochat.low.b",
        "nanochat.high.a",
        "by a name in a string",
    )
    assert draw.cycles(code.between_rooms()) == [["high", "low", "side"]]
    assert code.work == ["nanochat.low.b:4"] and code.functions == {"nanochat.high.a.f": 3}
    assert "3 in 1" in draw.picture(code, [["commands"], ["high"], ["low", "side"]], "")
