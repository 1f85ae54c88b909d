"""What `evals=` offers can be scored."""

import pytest
from hydra import compose, initialize_config_dir

from nanochat import evaluate
from nanochat.runtime.app import register
from nanochat.runtime.paths import conf_dir


def test_an_unknown_evaluation_is_answered_with_those_that_can_be_scored() -> None:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("evaluate", ["ckpt=x", "evals=[bogus]"])
        with pytest.raises(ValueError, match=r"evals=bogus is not known; choose from bpb, sample, ") as error:
            evaluate.run(cfg)
    offered = str(error.value).partition("choose from ")[2].partition(";")[0].split(", ")
    assert {"gsm8k", "humaneval", "mmlu", "arc_easy", "arithmetic", "spelling_bee"} <= set(offered)
    assert not {"dolly", "oasst", "smoltalk", "messages", "jsonl"} & set(offered)
