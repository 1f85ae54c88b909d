"""Write the page of a run and the runs before it: `python -m nanochat.report run=demo-rl`.

`report.html` and `report.md` are written into the run's folder, or to `out=`. `watch=true` writes
them again until the run ends.
"""

import time
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command
from nanochat.commands.configs import choices, compose_command


def run(cfg: DictConfig) -> None:
    from nanochat.report import chapter
    from nanochat.runtime.paths import base_dir

    runs = base_dir() / "runs"
    path = chapter.find(cfg.run, runs)
    out = Path(cfg.out).expanduser() if cfg.out else path / "report.html"
    if out.suffix != ".html":
        raise ValueError(f"out={cfg.out} must end in .html; the Markdown is written next to it")
    if cfg.compare not in ("auto", None):
        chapter.find(cfg.compare, runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    going = write(cfg, path, runs, out)
    print(f"report: {out}", flush=True)
    while going and cfg.watch:
        time.sleep(cfg.every)
        going = write(cfg, path, runs, out)


def write(cfg: DictConfig, path: Path, runs: Path, out: Path) -> bool:
    """Write both files. True if the run is still running."""
    from nanochat.report.chapter import chain
    from nanochat.report.compare import comparisons
    from nanochat.report.conversation import talk_with
    from nanochat.report.render import render
    from nanochat.report.view import report_view

    chapters = chain(path, runs)
    going = chapters[-1].info.state == "training"
    asked = [cfg.ask] if isinstance(cfg.ask, str) else list(cfg.ask or [])
    kept, how = out.with_suffix(".talk.json"), {"device": cfg.device, "precision": cfg.precision}
    # no conversation while the model is still being trained
    talk = None if going else talk_with(chapters[-1], asked, kept, **how)
    view = report_view(
        chapters,
        defaults,
        comparisons=comparisons(chapters, cfg.compare, runs),
        price=cfg.price_per_hour,
        talk=talk,
        refresh=cfg.every if going and cfg.watch else None,
    )
    for file, template in ((out, "report.html"), (out.with_suffix(".md"), "report.md")):
        temporary = file.with_name(f".{file.name}.part")
        temporary.write_text(render(template, view), encoding="utf-8")
        temporary.replace(file)
    return going


@cache
def defaults(phase: str, machine: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The config of a phase where only the machine is typed: with interpolations resolved, and
    without. None for an unknown phase."""
    if phase not in choices("phase"):
        return None
    words = [f"+phase={phase}", *([f"trainer={machine}"] if machine in choices("trainer") else [])]
    cfg = compose_command("train", words)
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, None)
    plain, raw = (OmegaConf.to_container(cfg, resolve=resolve) for resolve in (True, False))
    return plain, raw  # type: ignore[return-value]


main = command("report", run)

if __name__ == "__main__":
    main()
