"""How far the forecasts of earlier runs were from what they took, on the same kind of device. The
next forecast is corrected by it."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nanochat.runs.run_folder import RECORD

LEAST, MOST = 3, 20  # guess: runs that are needed for a correction, and looked at


@dataclass(frozen=True)
class Earlier:
    """Medians over `runs` runs of what they took over what was predicted."""

    runs: int = 0
    memory: float = 1.0
    speed: float = 1.0

    def described(self) -> str:
        return (
            f"{self.runs} runs here took {self.memory:.2f} x the memory and had {self.speed:.2f} x "
            "the speed that were predicted; memory, speed and time above are corrected by it"
        )


def look_back(runs: Path, device: str) -> Earlier:
    """The newest runs below `runs` on devices in whose name `device` is."""
    records = sorted(
        (p for pattern in ("*/*", "*/*/*") for p in runs.glob(f"{pattern}/{RECORD}")),
        key=lambda p: p.stat().st_mtime,
        reverse=True,
    )
    memory: list[float] = []
    speed: list[float] = []
    for file in records:
        if len(memory) == MOST:
            break
        found = _of(file, device)
        if found is not None:
            memory.append(found[0])
            speed += found[1:]
    if len(memory) < LEAST:
        return Earlier()
    return Earlier(len(memory), median(memory), median(speed) if len(speed) >= LEAST else 1.0)


def _of(file: Path, device: str) -> list[float] | None:
    """Measured over predicted, of memory and, where it is known, of speed; None for a run without a
    forecast, or one that did not end."""
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    predicted, took = record.get("forecast") or {}, record.get("outcome") or {}
    if device not in str((record.get("hardware") or {}).get("device")):
        return None
    if not predicted.get("peak_bytes") or not took.get("peak_bytes", 0) > 0:
        return None
    if took.get("computed_in_parts", 1) > 1:
        return None
    if took.get("rows_per_device") != predicted.get("rows_per_device"):
        return None
    found = [took["peak_bytes"] / predicted["peak_bytes"]]
    if predicted.get("tokens_per_second") and took.get("tokens_per_second"):
        found.append(took["tokens_per_second"] / predicted["tokens_per_second"])
    return found
