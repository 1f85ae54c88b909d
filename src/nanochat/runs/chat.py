"""A run on conversations: its checkpoint brings sizes and tokenizer, and the epochs over the
mixture set its length."""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from hydra.utils import instantiate

from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.datamodules.by_step import share_out
from nanochat.datamodules.chat import ChatDataModule
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.engine import Engine
from nanochat.runs import doubts, show
from nanochat.runs.plan import Plan, make_epochs_plan
from nanochat.runs.recipe import Recipe
from nanochat.runs.schema import Train
from nanochat.runtime.settings import Built
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.conversations import check_chat_tokens, render_prompt

CONVERSATIONS_PER_STEP = 32  # from: facts sheet 5.7, of the classic recipe


class ChatSettings(Train):
    data: Annotated[
        dict,
        Built(
            makes=ChatDataModule,
            instead="trains on conversations; choose data=jsonl, data=sft_mix …",
        ),
    ]


class ChatRecipe(Recipe):
    settings: type[Train] = ChatSettings
    chats = True

    @cached_property
    def data(self) -> Any:
        data = instantiate(self.config["data"])
        data.endless = self.config["max_steps"] is not None
        return data

    @cached_property
    def tokenizer(self) -> Tokenizer:
        assert self.parent is not None
        return checkpoint_folder.load_tokenizer(self.parent)

    @cached_property
    def gpt_config(self) -> GPTConfig:
        assert self.parent is not None
        return checkpoint_folder.read_config(self.parent)

    @cached_property
    def plan(self) -> Plan:
        self.data.use(self.tokenizer)
        config = self.config
        return make_epochs_plan(
            self.gpt_config,
            rows=self.data.epochs_rows(),
            epochs=self.data.num_epochs,
            batch_tokens=self.batch_tokens,
            max_steps=config["max_steps"],
            scale=config["plan"]["scale"],
        )

    @property
    def batch_tokens(self) -> int:
        """As typed or inherited; with a conversation a row the classic 32 of them."""
        if self.config["batch_tokens"] is None and self.config["data"]["packing"] == "single":
            return CONVERSATIONS_PER_STEP * self.gpt_config.sequence_len
        if self.config["batch_tokens"] is None:
            phase = self.config["phase"]
            raise ValueError(
                f"batch_tokens must be given for phase {phase} where it is not inherited; try "
                "batch_tokens=32768"
            )
        return self.config["batch_tokens"]

    def _check_parent(self) -> None:
        if self.parent is None:
            phase, start = (
                self.config["phase"],
                f"init_from=base-d{self.config['model']['depth']}@latest",
            )
            raise ValueError(
                f"phase {phase} starts from a checkpoint; add init_from=RUN@latest, for example "
                f"{start}"
            )

    def check_data(self) -> None:
        config = self.config
        self._check_parent()
        check_chat_tokens(self.tokenizer)
        sizes = self.gpt_config
        share_out(
            self.batch_tokens,
            sizes.sequence_len,
            self.world_size,
            config["data"].get("rows_per_device"),
        )
        with torch.device("meta"):
            factor = make_epochs_plan(
                sizes,
                rows=1,
                epochs=1,
                batch_tokens=self.batch_tokens,
                scale=config["plan"]["scale"],
            )
            self.build_optimizer(factor)(GPT(sizes))
        for task in (*self.data.train_tasks.values(), *self.data.val_tasks.values()):
            len(task)  # is its data there? before any of them is rendered

    def length_shows(self, before: dict[str, Any], done: int, old: int, new: int) -> str | None:
        if before["max_steps"] is None and done >= old:
            return "the last of its epochs ends with it"
        return super().length_shows(before, done, old, new)

    def no_effect(self) -> dict[str, str]:
        length = "data.num_epochs or max_steps set the length of a run on conversations"
        decay = (
            "the plan of a run on conversations has no weight decay; set "
            "optim.groups.matrix.weight_decay=…"
        )
        return {
            **super().no_effect(),
            "plan.tokens": length,
            "plan.flops": length,
            "plan.ratio": length,
            "plan.weight_decay": decay,
        }

    def print_plan(self, inherited: Sequence[tuple[str, str, str]] = ()) -> None:
        """What is inherited and what the mixture is made of, then the plan."""
        if inherited:
            show.inherited(inherited)
        self.data.use(self.tokenizer)
        show.shares(
            self.data.shares(), self.data.utilisation(), self.data.rows("train").mixture.dropped
        )
        for note in self.data.notes():
            print(f"note: {note}")
        if (rows := self.data.epochs_rows()) < (
            wanted := self.batch_tokens // self.gpt_config.sequence_len
        ):
            print(
                f"note: all epochs together are {rows:,} rows and a step is {wanted:,}: most of it "
                "is padding; lower batch_tokens"
            )
        if self.config["phase"] == "sft" and self.parent is not None:
            show.skipped_mid(checkpoint_folder.phase(self.parent))
        super().print_plan()

    def doubts(self) -> list[str]:
        self.data.use(self.tokenizer)
        lengths = np.concatenate([task.lengths for task in self.data.rendered("train").values()])
        short = doubts.short_context(lengths, self.gpt_config.sequence_len)
        # cut into rows as a stream, a conversation goes on in the next one
        return [*super().doubts(), *(short if self.data.packing != "stream" else [])]

    def describe(self) -> str:
        data = self.data
        return (
            f"conversations of {', '.join(data.train_tasks)}; packing {data.packing}, supervise "
            f"{data.supervise}"
        )

    def sampled(self, gpt: GPT, prompts: list[str], settings: dict[str, Any]) -> list[str]:
        """The answer to each prompt as the first thing said, with the calculator at hand."""
        asked = [{"messages": [{"role": "user", "content": text}]} for text in prompts]
        answers = Engine(gpt, self.tokenizer).generate(
            [render_prompt(self.tokenizer, c) for c in asked], **settings
        )
        return [f" -> {answer.text}" for answer in answers]
