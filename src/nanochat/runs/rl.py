"""A run of reinforcement learning: questions of one task, answered by the checkpoint it starts from
and rewarded."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import lightning as L
import torch
from hydra.utils import instantiate
from pydantic import Field

from nanochat.callbacks.go_no_go import GoNoGo
from nanochat.callbacks.rollouts import Rollouts
from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.datamodules.questions import QuestionsDataModule
from nanochat.evals.pass_at_k import PassAtK
from nanochat.gpt import GPT
from nanochat.inference.sampling import Sampling
from nanochat.rl.algorithms import Algorithm, build_algorithm
from nanochat.rl.collect import Collector
from nanochat.rl.policy import check_sampling
from nanochat.rl.preflight import Preflight
from nanochat.rl.rewards import Rewards
from nanochat.runs import show
from nanochat.runs.chat import ChatRecipe
from nanochat.runs.plan import Plan
from nanochat.runs.run_folder import RunFolder
from nanochat.runs.schema import Train
from nanochat.runtime.settings import Built, Count, MinP, Positive, Settings, TopK, TopP
from nanochat.tasks.task import Task

# padded tokens of a forward pass of the update. On a CPU measured (d4, 2 cores: 2,048 took 0.6 of
# the time of 16,384); else a guess
MICRO_TOKENS = {"cpu": 2048}
MICRO_TOKENS_GPU = 16384
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "tools", "python")


class RolloutSettings(Settings):
    questions: Count
    samples: Annotated[int, Field(ge=2)]  # a group to compare an answer with
    max_tokens: Count
    temperature: Annotated[float, Field(gt=0, le=1e6)]
    top_k: TopK
    top_p: TopP
    min_p: MinP
    tools: bool
    python: bool
    max_rows: Count
    table_every: Count | None


class GoNoGoSettings(Settings):
    run: bool
    questions: Count


class OfReward(Settings):
    weight: float = 1.0
    timeout: Positive = 60.0


class RLSettings(Train):
    """The settings of phase rl, besides those of every run."""

    data: Annotated[
        dict,
        Built(
            makes=QuestionsDataModule,
            instead="asks the questions of a task; drop data=…, and choose task=NAME",
        ),
    ]
    task: Annotated[dict, Built()]
    algo: Annotated[dict, Built("nanochat.rl.algorithms.Algorithm")]
    rewards: Annotated[dict, Built(more=OfReward, each=True)]
    rollout: RolloutSettings
    preflight: GoNoGoSettings
    force: bool


class RLRecipe(ChatRecipe):
    settings = RLSettings

    @cached_property
    def data(self) -> Any:
        return instantiate(self.config["data"], _recursive_=False)

    @cached_property
    def algorithm(self) -> Algorithm:
        return build_algorithm(self.config["algo"])

    @cached_property
    def rewards(self) -> Rewards:
        return Rewards(self.config["rewards"])

    @cached_property
    def sampling(self) -> Sampling:
        """How answers are sampled for training."""
        rollout = self.config["rollout"]
        return Sampling(**{key: rollout[key] for key in SAMPLING}, max_tokens=rollout["max_tokens"])

    def eval_settings(self) -> dict[str, Any]:
        """As typed; pass_at_k without a task asks the held-out questions of the run's own."""
        found = super().eval_settings()
        asked, task = found.get("pass_at_k"), self.config["task"]
        if not asked or asked["task"] is not None:
            return found
        if "split" not in task:
            raise ValueError(
                "this task has no test split: name held-out questions with "
                "+task@evals.pass_at_k.task=NAME "
                "evals.pass_at_k.task.path=…, for example another file"
            )
        return {**found, "pass_at_k": {**asked, "task": task}}

    @property
    def val_task(self) -> Task | None:
        """The held-out questions, if they are asked."""
        evaluation = self.evaluations.get("pass_at_k")
        return evaluation.task if isinstance(evaluation, PassAtK) else None

    @cached_property
    def plan(self) -> Plan:
        """A step is an optimizer step; answers are as long as they turn out, so tokens are a
        bound."""
        config, rollout = self.config, self.config["rollout"]
        rollouts = len(self.data.task) // rollout["questions"] * self.data.num_epochs
        steps = config["max_steps"] or rollouts * self.algorithm.updates
        source = (
            f"max_steps={steps:,}"
            if config["max_steps"]
            else (
                f"{self.data.num_epochs} x {len(self.data.task):,} questions of "
                f"{self.data.task.name}"
            )
        )
        if steps < 1:
            raise ValueError(
                f"{source} are less than one step of rollout.questions={rollout['questions']}: "
                "zero steps; lower rollout.questions"
            )
        tokens = rollout["questions"] * rollout["samples"] * rollout["max_tokens"]
        return Plan(self.gpt_config, steps * tokens, tokens, steps, 1.0, 0.0, source)

    def check_data(self) -> None:
        rollout = self.config["rollout"]
        self._check_parent()
        check_sampling(self.sampling)
        algorithm = self.algorithm
        if algorithm.normalise == "pass" and rollout["samples"] % algorithm.pass_rows:
            raise ValueError(
                f"rollout.samples={rollout['samples']} is not a multiple of "
                f"algo.pass_rows={algorithm.pass_rows}; change one of the two"
            )
        if rollout["questions"] % self.world_size:
            raise ValueError(
                f"rollout.questions={rollout['questions']} cannot be shared out over "
                f"{self.world_size} processes; make it a multiple"
            )
        if algorithm.minibatches > rollout["questions"]:
            raise ValueError(
                f"algo.minibatches={algorithm.minibatches} is more than "
                f"rollout.questions={rollout['questions']}; lower it"
            )
        if rollout["max_tokens"] >= self.gpt_config.sequence_len:
            raise ValueError(
                f"rollout.max_tokens={rollout['max_tokens']} leaves no room for a question in the "
                f"model's context of {self.gpt_config.sequence_len:,}; try "
                f"rollout.max_tokens={self.gpt_config.sequence_len // 2}"
            )
        task = self.data.task
        if task.kind == "chat":
            raise ValueError(
                f"{task.name} cannot be rewarded: nothing in it is right or wrong; choose a task "
                "with a score"
            )
        len(task)  # is its data there?
        _ = self.rewards, self.plan
        with torch.device("meta"):
            self.build_optimizer(self.plan)(GPT(self.gpt_config))

    def no_effect(self) -> dict[str, str]:
        length = "data.num_epochs or max_steps set the length of a run on questions"
        batch = "rollout.questions and rollout.samples are the batch of a run on questions"
        return {
            "plan": length,
            "batch_tokens": batch,
            "eval_tokens": "answers are evaluated here, not text; see evals.pass_at_k",
            "trainer.limit_train_batches": (
                "a step asks new questions; data.num_epochs and task.stop say which"
            ),
            "trainer.overfit_batches": (
                "a step asks new questions; data.num_epochs and task.stop say which"
            ),
            "trainer.gradient_clip_algorithm": "phase rl clips by the norm",
            "compute.trial": "answers differ in length; data.micro_tokens bounds a pass",
            "compute.compile": (
                "shapes change with every answer, so nothing is compiled in phase rl"
            ),
        }

    def choose_by_forecast(self) -> None:
        """Texts of many lengths are not foreseen."""

    def forecast_facts(self) -> None:
        """None."""

    def print_plan(self, inherited: Sequence[tuple[str, str, str]] = ()) -> None:
        if inherited:
            show.inherited(inherited)
        show.rl_plan(self)

    def describe(self) -> str:
        return f"{len(self.data.task):,} questions of {self.data.task.name}"

    def wants_compile(self) -> bool:
        return False

    def attention(self) -> str:
        """FlexAttention is compiled for each shape, and here every micro-batch has another."""
        asked = self.config["compute"]["attention"]
        return "sdpa" if asked == "auto" else str(asked)

    def batch_of_report(self) -> int | None:
        return None

    @property
    def micro_tokens(self) -> int:
        return self.data.micro_tokens or MICRO_TOKENS.get(self.device.type, MICRO_TOKENS_GPU)

    def collector(self) -> Collector:
        rollout = self.config["rollout"]
        return Collector(
            self.tokenizer,
            self.data.task,
            self.rewards,
            self.algorithm,
            self.sampling,
            questions=rollout["questions"],
            samples=rollout["samples"],
            seed=self.config["seed"],
            max_rows=rollout["max_rows"],
            rank=int(os.environ.get("RANK", 0)),
            world_size=self.world_size,
        )

    def module_arguments(self) -> dict[str, Any]:
        start = None
        if self.algorithm.kl:
            assert self.parent is not None
            start = checkpoint_folder.load_to_run(
                self.parent, device=self.device, compute_dtype=self.dtype[0]
            )
        clip_norm = self.config["trainer"]["gradient_clip_val"]
        return {
            "collector": self.collector(),
            "micro_tokens": self.micro_tokens,
            "clip_norm": clip_norm,
            "start": start,
        }

    def print_result(self, before: dict[str, float], after: dict[str, float]) -> None:
        if self.val_task is not None:
            show.gain(before, after, f"{self.val_task.name}, held out")

    def first_callbacks(self, folder: RunFolder) -> list[L.Callback]:
        settings = self.config["preflight"]
        preflight = GoNoGo(
            Preflight(
                self.collector(), questions=settings["questions"], micro_tokens=self.micro_tokens
            ),
            folder.path,
            tell=show.findings,
            force=self.config["force"],
        )
        table_every = self.config["rollout"]["table_every"]
        rollouts = Rollouts(folder.path, self.tokenizer, self.data.task, table_every=table_every)
        return [*([preflight] if settings["run"] else []), rollouts]
