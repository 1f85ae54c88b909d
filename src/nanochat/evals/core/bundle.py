"""The files of CORE: a list of tasks, their random baselines, and the questions."""

import csv
import json
import logging
import random
import shutil
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
import yaml

from nanochat.runtime.paths import base_dir, hub_dir

log = logging.getLogger(__name__)

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"  # from: facts sheet 6.2
# fields of an item of each type
FIELDS = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
# label -> file, of the 22 tasks. From: facts sheet 6.2
TASKS = {
    "hellaswag_zeroshot": "language_understanding/hellaswag.jsonl",
    "jeopardy": "world_knowledge/jeopardy_all.jsonl",
    "bigbench_qa_wikidata": "world_knowledge/bigbench_qa_wikidata.jsonl",
    "arc_easy": "world_knowledge/arc_easy.jsonl",
    "arc_challenge": "world_knowledge/arc_challenge.jsonl",
    "copa": "commonsense_reasoning/copa.jsonl",
    "commonsense_qa": "commonsense_reasoning/commonsense_qa.jsonl",
    "piqa": "commonsense_reasoning/piqa.jsonl",
    "openbook_qa": "commonsense_reasoning/openbook_qa.jsonl",
    "lambada_openai": "language_understanding/lambada_openai.jsonl",
    "hellaswag": "language_understanding/hellaswag.jsonl",
    "winograd": "language_understanding/winograd_wsc.jsonl",
    "winogrande": "language_understanding/winogrande.jsonl",
    "bigbench_dyck_languages": "symbolic_problem_solving/bigbench_dyck_languages.jsonl",
    "agi_eval_lsat_ar": "symbolic_problem_solving/agi_eval_lsat_ar.jsonl",
    "bigbench_cs_algorithms": "symbolic_problem_solving/bigbench_cs_algorithms.jsonl",
    "bigbench_operators": "symbolic_problem_solving/bigbench_operators.jsonl",
    "bigbench_repeat_copy_logic": "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl",
    "squad": "reading_comprehension/squad.jsonl",
    "coqa": "reading_comprehension/coqa.jsonl",
    "boolq": "reading_comprehension/boolq.jsonl",
    "bigbench_language_identification": (
        "language_understanding/bigbench_language_identification.jsonl"
    ),
}
# Random baselines in percent that DCLM corrected; those of the other tasks stayed. From:
# mlfoundations/dclm#114 and #115, eval/eval_meta_data.csv compared with eval_meta_data_v1.csv
CORRECTED = {
    "commonsense_qa": 40.3,
    "bigbench_language_identification": 25.0,
    "agi_eval_lsat_ar": 25.0,
}


@dataclass(frozen=True)
class CoreTask:
    """A task of the bundle. `baseline` is the accuracy of guessing in percent, as nanochat uses
    it."""

    label: str
    file: Path
    uri: str
    kind: str  # one of FIELDS
    shots: int
    delimiter: str
    baseline: float

    @property
    def corrected_baseline(self) -> float:
        return CORRECTED.get(self.label, self.baseline)

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """The items in the order of the file. ValueError names a wrong line."""
        items = []
        with self.file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    item = json.loads(line)
                    missing = [name for name in FIELDS[self.kind] if name not in item]
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{self.file}:{number} is not JSON ({error})") from error
                if missing:
                    raise ValueError(f"{self.file}:{number} has no {missing[0]}")
                items.append(item)
        if not items:
            raise ValueError(f"{self.file} is empty")
        return items

    def order(self, seed: int) -> list[int]:
        """Indices of `items` in the shuffled order in which they are used."""
        order = list(range(len(self.items)))
        random.Random(seed).shuffle(order)
        return order


class Bundle:
    """The folder `path`: core.yaml, eval_meta_data.csv and eval_data/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("core.yaml", "eval_meta_data.csv", "eval_data"):
            if not (path / name).exists():
                raise ValueError(
                    f"{path} has no {name}, so it is not the CORE bundle; name its folder as "
                    "evals.core.bundle=DIR"
                )

    @cached_property
    def tasks(self) -> list[CoreTask]:
        """ValueError for a task of a kind that is not known, without a baseline or without a
        file."""
        with (self.path / "eval_meta_data.csv").open(encoding="utf-8", newline="") as file:
            baselines = {
                row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)
            }
        listed = yaml.safe_load((self.path / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
        return [self._task(entry, baselines) for entry in listed]

    def _task(self, entry: dict[str, Any], baselines: dict[str, float]) -> CoreTask:
        label, kind, uri = entry["label"], entry["icl_task_type"], entry["dataset_uri"]
        file = self.path / "eval_data" / uri
        if kind not in FIELDS:
            raise ValueError(f"{label} in {self.path}/core.yaml is of the unknown type {kind}")
        if label not in baselines:
            raise ValueError(f"{label} has no baseline in {self.path}/eval_meta_data.csv")
        if not file.is_file():
            raise ValueError(f"{file} is missing; copy the bundle again")
        delimiter = entry.get("continuation_delimiter", " ")
        shots = entry["num_fewshot"][0]
        return CoreTask(label, file, uri, kind, shots, delimiter, baselines[label])

    @cached_property
    def hash(self) -> str:
        """Hash of the lists and of the files of all tasks."""
        digest = xxhash.xxh3_128()
        files = {self.path / "core.yaml", self.path / "eval_meta_data.csv"}
        for file in sorted(files | {task.file for task in self.tasks}):
            digest.update(str(file.relative_to(self.path)).encode() + file.read_bytes())
        return digest.hexdigest()


def find(path: str | None) -> Bundle | None:
    """The bundle in `path`; without a path the downloaded one or that of the hub's mirror, or None.
    ValueError if `path` is not a bundle."""
    if path is not None:
        if not Path(path).expanduser().is_dir():
            raise ValueError(f"evals.core.bundle={path} is not a folder")
        return Bundle(Path(path).expanduser().absolute())
    places = [base_dir() / "eval_bundle", *([hub_dir() / "eval_bundle"] if hub_dir() else [])]  # type: ignore[operator]
    return next((Bundle(place) for place in places if place.is_dir()), None)


def download() -> Bundle:
    """Download the bundle into the base folder (162 MB). OSError if that fails."""
    target = base_dir() / "eval_bundle"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        packed = Path(folder) / "eval_bundle.zip"
        log.warning("downloading the CORE bundle (162 MB) to %s", target)
        try:
            with urllib.request.urlopen(URL, timeout=60) as source, packed.open("wb") as file:
                shutil.copyfileobj(source, file)
            with zipfile.ZipFile(packed) as archive:
                archive.extractall(folder)
            (Path(folder) / "eval_bundle").rename(target)
        except (OSError, zipfile.BadZipFile) as error:
            if not target.is_dir():  # another process was quicker
                raise OSError(
                    f"cannot get the CORE bundle from {URL} ({error}); go online, or name a folder "
                    "that has it as evals.core.bundle=DIR"
                ) from error
    return Bundle(target)
