"""Tasks whose rows are a Hugging Face data set, read by the `datasets` library.

With a local mirror (`paths.hub_dir`) rows come from `<mirror>/<org>/<name>/`, without network
access. The rows of a split are always taken in the order of one permutation with seed 42,
nanochat's (facts sheet 4.3), so that the first thousand rows of a sorted data set are a random
sample of it.
"""

from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np

from nanochat.runtime.paths import base_dir, hub_dir
from nanochat.tasks.task import Task

SHUFFLE_SEED = 42  # from: facts sheet 4.3


class HubTask(Task):
    """Rows of one split. `dataset` is its name on the hub, `subset` its config (None: the default
    one)."""

    columns: tuple[str, ...]  # the columns that conversations are made of

    def __init__(self, *, dataset: str, subset: str | None, split: str, **common: Any):
        super().__init__(**common)
        self.dataset = dataset
        self.subset = subset
        self.split = split

    @cached_property
    def rows(self) -> Any:
        """The rows as a datasets.Dataset, in the order of the data set. Raises as
        `load_rows` does."""
        return load_rows(self.dataset, self.subset, self.split, self.columns)

    @cached_property
    def order(self) -> np.ndarray:
        """Permutation of the rows: conversation i is made of row order[i]."""
        return np.random.default_rng(SHUFFLE_SEED).permutation(len(self.rows))

    def total(self) -> int:
        return len(self.rows)

    def row(self, i: int) -> dict[str, Any]:
        return self.rows[int(self.order[i])]

    def where(self, i: int) -> str:
        """The name of conversation i in error messages."""
        return f"row {self.order[i]} of {self.dataset} {self.split}"

    def settings(self) -> dict[str, Any]:
        # the library's hash of the files and of how they were read
        own = {
            "dataset": self.dataset,
            "subset": self.subset,
            "split": self.split,
            "rows": self.rows._fingerprint,
        }
        return {**super().settings(), **own}


def _read(dataset: str, subset: str | None, split: str, place: str) -> Any:
    """A whole split, downloaded where it is not here. Errors as `load_rows`."""
    # imported here: it is slow to import, and generated tasks do not need it
    import datasets

    mirror, cache = hub_dir(), str(base_dir() / "datasets")
    if mirror and not (mirror / dataset).is_dir():
        raise FileNotFoundError(
            f"{dataset} is not in the mirror {mirror}; put it there, set NANOCHAT_HUB_DIR "
            "(paths.hub_dir=) to a mirror that has it, or unset it and go online"
        )
    source = str(mirror / dataset) if mirror else dataset
    if mirror:
        datasets.disable_progress_bars()  # the files are local
    try:
        builder = datasets.load_dataset_builder(source, subset, cache_dir=cache)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{dataset} is not on the hub, or is private or gated; check `dataset`, or log in with "
            "`hf auth login`"
        ) from error
    # the libraries below report a missing network with many exception types
    except Exception as error:
        if configs := _configs(source, subset):
            raise ValueError(
                f"subset={subset} is not a config of {dataset} {place}; set `subset` to one of: "
                f"{configs}"
            ) from error
        raise _unreadable(dataset, error) from error
    splits = list(builder.config.data_files or builder.info.splits or ())
    if splits and split not in splits:
        raise ValueError(
            (
                f"split={split} is not in {dataset} {subset or ''} {place}; set `split` to one of: "
                f"{', '.join(splits)}"
            ).replace("  ", " ")
        )
    try:
        builder.download_and_prepare()
        return builder.as_dataset(split)
    except Exception as error:
        raise _unreadable(dataset, error) from error


def load_rows(
    dataset: str,
    subset: str | None,
    split: str,
    columns: tuple[str, ...],
    others: Collection[str] | None = None,
) -> Any:
    """The named columns of a split. `others` lists further columns that are allowed (None: any).

    FileNotFoundError for a missing data set, ValueError for a missing config, split or column,
    OSError if the hub cannot be reached. Each message lists what exists.
    """
    place = "in the mirror" if hub_dir() else "on the hub"
    rows = _read(dataset, subset, split, place)
    if missing := [name for name in columns if name not in rows.column_names]:
        raise ValueError(
            f"{dataset} {split} {place} has no column {missing[0]}; its columns are: "
            f"{', '.join(rows.column_names)}"
        )
    unread = [
        name
        for name in rows.column_names
        if name not in columns and others is not None and name not in others
    ]
    if unread:
        raise ValueError(
            f"{dataset} {split} also has {', '.join(unread)}, which would not be read; if the "
            f"conversations are complete without, set `ignore` to [{','.join(unread)}]"
        )
    return rows.select_columns(list(columns))


def _configs(source: str, subset: str | None) -> str:
    """The configs that exist, if a wrong `subset` was the error; else ""."""
    import datasets

    try:
        configs = datasets.get_dataset_config_names(source)
    except Exception:
        return ""
    return "" if subset in configs else ", ".join(configs)


def _unreadable(dataset: str, error: Exception) -> OSError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    mirror = hub_dir()
    if mirror:
        return OSError(
            f"{dataset} in the mirror {mirror} cannot be read ({reason}); copy it there again"
        )
    return OSError(
        f"cannot get {dataset} from the hub ({reason}); go online, or set NANOCHAT_HUB_DIR "
        f"(paths.hub_dir=) to a mirror with {dataset}/"
    )
