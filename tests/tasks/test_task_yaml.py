"""Every choice in conf/task composes, has the keys of what it builds, and builds."""

import inspect

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate

from nanochat.runtime.paths import conf_dir
from nanochat.tasks import Task

NAMES = sorted(
    path.stem for path in (conf_dir() / "task").glob("*.yaml") if not path.stem.startswith("_")
)
ASKED_FOR = {"messages": ["task.dataset=me/talks"], "jsonl": ["task.path=talks.jsonl"]}


def composed(name: str, *words: str):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(f"task/{name}", list(words)).task


@pytest.mark.parametrize("name", NAMES)
def test_every_task_builds_from_its_yaml(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talks.jsonl").write_text("[]")
    config = composed(name, *ASKED_FOR.get(name, []))
    task = instantiate(config)
    assert isinstance(task, Task) and task.kind in ("chat", "choice", "answer")
    assert task.name == name, "so that metrics are called as the file is"
    assert set(config) - {"_target_"} == arguments(get_class(config["_target_"])), (
        "the keys are the arguments, all of them"
    )


def arguments(kind: type) -> set[str]:
    """The constructor's, and of those it passes others on to."""
    found: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            found |= {
                name
                for name, p in inspect.signature(base.__init__).parameters.items()
                if p.kind == p.KEYWORD_ONLY
            }
    return found


def test_the_folder_holds_what_it_should():
    assert set(NAMES) == set(
        "arc_challenge arc_easy arithmetic dolly gsm8k humaneval identity jsonl messages mmlu "
        "oasst openbookqa pydocs_qa "
        "schema_guided self_dialogue simple_spelling smoltalk spelling_bee topical_chat".split()
    )


def test_a_task_takes_its_place_in_a_mixture_and_is_changed_there():
    """As a data config does it: a task under a key of its own, some of its settings changed."""
    assert composed("smoltalk")["dataset"] == "HuggingFaceTB/smol-smoltalk"
    task = instantiate(composed("arithmetic", "task.split=test", "task.repeat=4", "task.digits=2"))
    assert (task.split, task.repeat, task.digits) == ("test", 4, 2)
