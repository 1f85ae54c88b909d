"""What evaluate says below its table: of one checkpoint errors, of two their
pairs, of more the ratios."""

import json
import re
from pathlib import Path

from tests.evals.test_uncertainty import item

from nanochat.evals.comparing import noise_lines, numbers_of, pair_lines, recipe_of, task_lines


def checkpoint(folder: Path, step: int, seed: int, depth: int) -> Path:
    path = folder / f"d{depth}-{seed}" / "checkpoints" / f"step_{step:06d}"
    path.mkdir(parents=True)
    config = {"phase": "base", "seed": seed, "run_name": str(seed), "data": {"seed": seed, "x": 1}}
    (path / "lineage.json").write_text(json.dumps({"config": config | {"model": {"depth": depth}}}))
    return path


def test_seeds_are_of_one_recipe_and_depths_are_not(tmp_path):
    a, b, c = (checkpoint(tmp_path, 5, *one) for one in ((1, 2), (2, 2), (1, 4)))
    assert recipe_of(a) == recipe_of(b) != recipe_of(c)
    assert recipe_of(tmp_path) == str(tmp_path)  # of another kind


def test_three_checkpoints_are_a_table_of_their_numbers(tmp_path):
    paths = [checkpoint(tmp_path, *one) for one in ((9, 1, 2), (9, 2, 2), (8, 2, 2), (9, 1, 4))]
    results = [{"bpb": bpb, "t_accuracy": 0.5, "of": "1 of 2"} for bpb in (2.0, 2.2, 2.3, 1.1)]
    items = [[item(n, n % 2, nats=(nat, 1.0)) for n in range(4)] for nat in (3.0, 3.1, 3.2, 2.0)]
    rows = noise_lines(paths, results, items)
    # the d4 of 1.1 and the d2 of 2.0 and 2.2; 2.2 and 2.3 are two steps of one run
    assert "| bpb | 1.0000 | 0.0707 | 0.1414 | 7.1 | 100% |" in rows
    assert any(row.startswith("| t right_bpb |") for row in rows)
    assert not any("stderr" in row or "t_accuracy" in row for row in rows)
    assert noise_lines(paths[:3], results[:3], items[:3])[0].startswith("no signal-to-noise:")


def test_lines_give_errors_and_say_whose_noise_it_is():
    items = [item(n, n % 2, nats=(2.0, 1.0)) for n in range(4)]
    [line] = task_lines(items, {})
    assert line.startswith("t: 0.5000 ± 0.2887 of 4, right_bpb 2.8854, ")
    assert task_lines(items, {"t_stderr": 0.1}) == []
    *_, last = pair_lines(items, items)
    assert "of the questions alone" in last and "0.006" in last
    assert not re.search("better|worse", " ".join(pair_lines(items, items)))
    assert "t accuracy" in numbers_of({}, items)
