"""What `evals=` offers can be scored, and what it becomes."""

import pytest

from nanochat import evaluate
from tests.configs.test_every_yaml import choices, composed


def test_an_unknown_evaluation_is_answered_with_those_that_can_be_scored() -> None:
    with pytest.raises(
        ValueError,
        match=r"evals=bogus is not known; choose from bpb, chat, core, pass_at_k, sample, ",
    ) as error:
        evaluate.named(["ckpt=x", "evals=[bogus]"])
    offered = str(error.value).partition("choose from ")[2].partition(";")[0].split(", ")
    assert {"gsm8k", "humaneval", "mmlu", "arc_easy", "arithmetic", "spelling_bee"} <= set(offered)
    assert not {"dolly", "oasst", "smoltalk", "messages", "jsonl"} & set(offered)


@pytest.mark.parametrize(
    ("words", "evals", "tasks"),
    [
        ([], {"bpb", "tasks", "sample"}, set()),
        (["evals=[bpb]"], {"bpb", "tasks"}, set()),
        (["evals=[gsm8k,sample]", "evals.tasks.limit=3"], {"tasks", "sample"}, {"gsm8k"}),
        (["evals=pass_at_k", "+task@evals.pass_at_k.task=gsm8k"], {"pass_at_k", "tasks"}, set()),
    ],
)
def test_evals_names_files_of_conf_eval_and_of_conf_task(
    words: list[str], evals: set[str], tasks: set[str]
) -> None:
    config = composed("ckpt=x", *evaluate.named(words), name="evaluate")
    assert set(config["evals"]) == evals and set(config["evals"]["tasks"]["of"]) == tasks
    assert config["evals"]["tasks"]["limit"] == (3 if "evals.tasks.limit=3" in words else 256)


def test_every_evaluation_is_found_and_those_of_the_command_are_its_default() -> None:
    assert {"bpb", "chat", "core", "pass_at_k", "sample", "tasks", "train_bpb"} == set(
        choices("eval")
    )
    assert {*evaluate.DEFAULT, "tasks"} == set(composed("ckpt=x", name="evaluate")["evals"])
