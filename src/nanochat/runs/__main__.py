"""List the runs of the base folder, delete or archive some: `python -m nanochat.runs
name=base-d4`."""

import json
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from nanochat.commands.app import command


def run(cfg: DictConfig) -> None:
    from nanochat.runs import listing
    from nanochat.runtime.paths import base_dir

    home = base_dir() / "runs"
    if cfg.delete and cfg.archive:
        raise ValueError("delete= and archive= are two steps; archive deletes what it has packed")
    if cfg.confirm and not (cfg.delete or cfg.archive):
        raise ValueError("confirm=true confirms delete=RUN or archive=RUN; add one of them")
    found = listing.list_runs(home)
    if cfg.delete or cfg.archive:
        doing = "archive" if cfg.archive else "delete"
        words = cfg[doing] if isinstance(cfg[doing], ListConfig) else [cfg[doing]]
        for info in listing.choose(list(map(str, words)), found, force=cfg.force):
            if not cfg.confirm:
                print(f"would {doing} {info.name} ({size(info.size)}); add confirm=true")
            elif cfg.archive:
                packed = listing.archive(info, Path(cfg.archive_dir).expanduser())
                print(f"archived {info.name}; `tar -xf {packed} -C {home}` brings it back")
            else:
                listing.delete(info)
                print(f"deleted {info.name} ({size(info.size)})")
        return
    kept = [info for info in found if cfg.name in (None, info.name.split("/")[0])]
    if cfg.name and not kept:
        listing.choose([cfg.name], found, force=True)
    if cfg.format == "json":
        print(json.dumps([listing.as_row(info) for info in kept], indent=2))
        return
    if not kept:
        print(
            f"no runs in {home} yet; `python -m nanochat.train +phase=base model=d4 trainer=cpu` "
            "makes one"
        )
        return
    show(kept)


def show(found: list) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "phase", "state", "step", "best", "size", "age", "began from"):
        is_name, is_number = heading in ("run", "began from"), heading in ("step", "size", "age")
        table.add_column(  # a narrow terminal folds names, and cuts no number
            heading, justify="right" if is_number else "left", no_wrap=not is_name, overflow="fold"
        )
    for info in found:
        steps = f"{info.step:,}/{info.steps:,}" if info.steps else f"{info.step:,}"
        best = "" if info.best is None else f"{info.best:.4f} {info.metric}"
        table.add_row(
            info.name,
            info.phase,
            info.state,
            steps,
            best,
            size(info.size),
            age(info.age),
            short(info.parent),
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a pipe has no width
        console.width = 200
    console.print(table)
    total = sum(info.size for info in found)
    console.print(
        f"{len(found)} runs, {size(total)}; name=NAME shows one name, delete=NAME/TIME deletes"
    )


def short(parent: str | None) -> str:
    """
    >>> short("base-d4/2026-01-31_10-00-00Z@500"), short("/models/d32/checkpoints/step_000100")
    ('base-d4@500', 'd32@100')
    """
    if parent is None or parent.startswith("/"):
        parts = Path(parent or "").parts
        at = f"@{int(parts[-1][5:])}" if parts and parts[-1].startswith("step_") else ""
        return f"{parts[-3]}{at}" if at else (parts[-1] if parts else "")
    return f"{parent.partition('/')[0]}@{parent.rpartition('@')[2]}"


def size(count: int) -> str:
    """
    >>> size(1_234_567), size(12_345_678_901)
    ('1.2 MB', '12.3 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def age(seconds: float) -> str:
    """
    >>> age(90), age(7200), age(200_000)
    ('1 min', '2 h', '2 d')
    """
    for unit, length in (("d", 86400), ("h", 3600)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{int(seconds // 60)} min"


main = command("runs", run)

if __name__ == "__main__":
    main()
