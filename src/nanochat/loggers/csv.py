"""`metrics.csv` of a run, always written. On resume it keeps the rows up to the step it resumes
from, and no others."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from nanochat.loggers.own import OwnLogger


class CsvLogger(OwnLogger):
    """One row per step that logged something; a column per metric, `step` first. Rows are appended
    as they come."""

    name = "csv"

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.columns: list[str] = ["step"]
        if self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as handle:
                reader = csv.DictReader(handle)
                rows = [
                    row
                    for row in reader
                    if row.get("step", "").isdecimal()
                    and int(row["step"]) <= resume_step
                    and None not in row.values()
                ]
                self.columns = list(reader.fieldnames or ["step"])
            self._rewrite(rows)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        new = [key for key in row if key not in self.columns]
        if new or not self.file.is_file():
            self.columns += new
            self._rewrite(self.rows())
        with self.file.open("a", newline="", encoding="utf-8") as handle:
            csv.DictWriter(handle, self.columns, restval="").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        if not self.file.is_file():
            return []
        with self.file.open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        temporary = self.file.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, self.columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.file)
