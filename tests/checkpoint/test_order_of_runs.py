"""The latest run is the one that began last, whatever the clock on the wall showed where it
began."""

import json
import time
from pathlib import Path

import pytest
import yaml

from nanochat.checkpoint.runs import resolve, run_folders
from nanochat.runs.run_folder import open_run

CONFIG = {"run_name": "r", "resume": "auto", "seed": 1}


def make(runs: Path, name: str, started: str | None) -> Path:
    run = runs / "r" / name
    checkpoint = run / "checkpoints" / "step_000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "files.json").write_text("{}")
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (run / "record.json").write_text(json.dumps({"started": started} if started else {}))
    return run


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch):
    def set_to(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_to
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        # folders named by local time: begun in Tokyo, then, two hours later, in New York
        (
            ("2026-03-02_01-00-00", "2026-03-01T16:00:00+00:00"),
            ("2026-03-01_13-00-00", "2026-03-01T18:00:00+00:00"),
        ),
        # the hour that comes twice at the end of summer time
        (
            ("2026-10-25_02-50-00", "2026-10-25T02:50:00+02:00"),
            ("2026-10-25_02-10-00", "2026-10-25T02:10:00+01:00"),
        ),
        # of a version that wrote local time alone, then one of now
        (
            ("2026-03-01_13-00-00", "2026-03-01 13:00:00"),
            ("2026-03-01_12-30-00Z", "2026-03-01T12:30:00.000+00:00"),
        ),
        # neither record says when: the names do, as UTC and as local time
        (("2026-03-01_13-00-00", None), ("2026-03-01_12-30-00Z", None)),
        # many in one second
        (
            ("2026-03-01_12-30-00Z-2", "2026-03-01T12:30:00.300+00:00"),
            ("2026-03-01_12-30-00Z-10", "2026-03-01T12:30:00.900+00:00"),
        ),
    ],
)
def test_latest_and_auto_go_by_the_start(tmp_path: Path, zone, older, newer) -> None:
    zone("Europe/Berlin")
    first, last = make(tmp_path, *older), make(tmp_path, *newer)
    assert run_folders(tmp_path, "r") == [first, last]
    assert resolve("r@latest", tmp_path) == last / "checkpoints" / "step_000010"
    opened = open_run(CONFIG, tmp_path)
    assert opened.resumed and opened.path == last


def test_names_of_new_folders_sort_across_time_zones(tmp_path: Path, zone) -> None:
    names = []
    for place in ("Asia/Tokyo", "America/New_York", "UTC"):
        zone(place)
        names.append(open_run({**CONFIG, "resume": False}, tmp_path).path.name)
        time.sleep(1.01)
    assert names == sorted(names) and all(name.endswith("Z") for name in names)


def test_a_setting_that_is_a_tuple_is_the_list_that_was_written(tmp_path: Path) -> None:
    config = {**CONFIG, "optim": {"betas": (0.8, 0.95)}}
    run = make(tmp_path, "2026-03-01_12-30-00Z", "2026-03-01T12:30:00+00:00")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_run(config, tmp_path).resumed
