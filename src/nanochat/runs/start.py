"""A run that begins or goes on: what it is compared with, where it goes on from, and what is
prepared once before any process trains."""

from pathlib import Path

from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.checkpoint import lineage
from nanochat.checkpoint.runs import keep_for, lasting_name, now
from nanochat.runs.recipe import Recipe
from nanochat.runs.run_folder import RunFolder, read_config, read_record, write_record
from nanochat.runtime.paths import base_dir


def check_plan(recipe: Recipe, folder: RunFolder) -> None:
    """ValueError if the run to continue was planned otherwise. It may become longer where a run of
    the new length would have done the steps so far as they were done: it then ends as that one, bit
    for bit."""
    old, new = read_record(folder).get("plan") if folder.resumed else None, recipe.plan_facts()
    if not old or old == new:
        return
    if wrong := [
        k
        for k in old
        if k not in ("horizon_tokens", "horizon_source", "steps") and old[k] != new[k]
    ]:
        instead = (
            f"add batch_tokens={old['batch_tokens']}"
            if new["steps"] != old["steps"] and wrong[0] == "batch_tokens"
            else "resume on a number of devices that divides its batch"
        )
        raise ValueError(
            f"{folder.path} was planned with {wrong[0]}={old[wrong[0]]}, this command gives "
            f"{new[wrong[0]]}; {instead}"
        )
    done = (recipe.checkpoints(folder).steps() or [0])[-1]
    why = (
        f"{new['steps']:,} steps are fewer"
        if new["steps"] < old["steps"]
        else recipe.length_shows(read_config(folder.path), done, old["steps"], new["steps"])
    )
    if why:
        start = (
            lasting_name(recipe.checkpoints(folder).path(done), base_dir() / "runs")
            if done
            else None
        )
        raise ValueError(
            (
                f"{folder.path} was planned with {old['steps']:,} steps and cannot have another "
                f"length: {why}; drop max_steps, or begin a "
            )
            + (
                f"new run from its weights: init_from={start}, without resume="
                if start
                else "new run: drop resume="
            )
        )


def newest(recipe: Recipe, folder: RunFolder) -> tuple[Path | None, list[str]]:
    """The checkpoint that a resumed run goes on from, None if it never wrote one, and a line for
    each newer one that cannot be used. ValueError if there are some and none can be used."""
    checkpoints = recipe.checkpoints(folder)
    start, problems = checkpoints.latest_sound() if folder.resumed else (None, [])
    if problems and start is None:
        sound = (
            p
            for p in map(checkpoints.path, reversed(checkpoints.steps()))
            if not checkpoint_folder.problem(p)
        )
        weights = next((lasting_name(p, base_dir() / "runs") for p in sound), None)
        raise ValueError(
            f"{problems[0]}; no checkpoint of this run can be resumed. Start anew: drop resume="
            + (
                f"; or begin a new run from its weights: init_from={weights}, without resume="
                if weights
                else ""
            )
        )
    return start, problems


def is_finished(recipe: Recipe, folder: RunFolder) -> bool:
    """True, and said, if the run to continue has its last step and the evaluation of it."""
    checkpoints = recipe.checkpoints(folder)
    steps = checkpoints.steps() if folder.resumed else []
    end = checkpoints.path(steps[-1]) if steps and steps[-1] >= recipe.plan.steps else None
    judged = recipe.result is None or last_result(recipe, folder) is not None
    if end is not None and checkpoint_folder.problem(end) is None and judged:
        length = recipe.plan.steps
        batch = (
            ""
            if recipe.config["batch_tokens"] or not recipe.batch_of_report()
            else f" batch_tokens={recipe.plan.batch_tokens}"
        )
        grows = recipe.length_shows(recipe.config, length, length, 2 * length) is None
        more = f"resume={folder.path} max_steps=N{batch} makes it longer, for N above {length}"
        again = (
            f"init_from={lasting_name(end, base_dir() / 'runs')} begins a new run from it, without "
            "resume="
        )
        print(f"this run is finished: {end}; {more if grows else again}")
        return True
    return False


def last_result(recipe: Recipe, folder: RunFolder) -> float | None:
    """What the last checkpoint is judged by (`result`), or None if it was not evaluated."""
    checkpoints = recipe.checkpoints(folder)
    if recipe.result is None or not checkpoints.steps():
        return None
    return checkpoints.metrics(checkpoints.steps()[-1]).get(recipe.result)


def prepare(recipe: Recipe, folder: RunFolder) -> None:
    """What happens once, before any process trains: record, tokenizer, first token shards."""
    recipe.attach()
    code, record = lineage.code_state(), read_record(folder) if folder.resumed else {}
    manifest = recipe.data.manifest()
    if (before := record.get("data")) and before["hash"] != manifest["hash"]:
        raise ValueError(
            f"the data of {folder.path} are not what they were when it began; drop resume= for a "
            "new run on the new ones"
        )
    newest(recipe, folder)
    facts = {
        "started": now().isoformat(timespec="milliseconds"),
        "command": lineage.command_line(),
        "code": code,
        "versions": lineage.versions(),
        "hardware": {
            "device": recipe.hardware.name,
            "peak_flops": recipe.hardware.peak_flops,
            "memory_bytes": recipe.hardware.memory_bytes,
            "processes": recipe.world_size,
        },
        "seed": recipe.config["seed"],
        "plan": recipe.plan_facts(),
        "forecast": recipe.forecast_facts(),
        "data": manifest,
        "parent": None
        if recipe.parent is None
        else {"path": str(recipe.parent), "sha256": lineage.parent_hash(recipe.parent)},
    }
    write_record(folder, recipe.config, facts)
    if (
        recipe.parent is not None
        and not folder.resumed
        and not recipe.config["trainer"].get("fast_dev_run")
    ):
        keep_for(recipe.parent, folder.path)
    (folder.path / "tokenizer").mkdir(exist_ok=True)
    recipe.tokenizer.save(folder.path / "tokenizer")
    recipe.data.prepare_data()
