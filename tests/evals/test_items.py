"""Items are read as they were written."""

from pathlib import Path

from nanochat.evals.items import Item, read_items, write_items


def test_items_are_read_as_they_were_written(tmp_path: Path) -> None:
    items = [
        Item("arc", 7, "Wo?\n", ("Köln", "\x85\u2028"), 1, 0, 0.0, {"nats": (1.5, 0.1)}),
        Item("gsm8k", 0, "1+1", (), "2", "zwei", 0.25),
    ]
    write_items(tmp_path / "items.jsonl", items)
    assert read_items(tmp_path / "items.jsonl") == items
