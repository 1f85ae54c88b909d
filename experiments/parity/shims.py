"""A pytest plugin: under the names that the original's tests import, our classes. Built by
`run.py`; nothing of the original is in it.

What a test asks of an interface that we do not have is skipped with the reason.
"""

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import nanochat.optim
import nanochat.tokenizer
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.optim import GroupedOptimizer
from nanochat.sandbox.execution import ProgramLimits, run_python
from nanochat.tasks.hub import HubTask
from nanochat.tasks.multiple_choice import prompt
from nanochat.tasks.task import Task
from nanochat.tokenizer import SPECIAL_TOKENS
from nanochat.tokenizer.conversations import render, render_prompt
from nanochat.tokenizer.tokenizer import BPETokenizer
from nanochat.tokenizer.training import train_bpe

NOT_COMPARABLE = {
    "test_kv_cache_basic": "our cache has rows of their own lengths, and no position to advance",
    "test_kv_cache_prefill": "our cache has rows of their own lengths, and no position to advance",
    "test_mixture_covers_all_examples_deterministically": (
        "a mixture is a list of (task, index) in data/chat.py, no object to index"
    ),
    (
        "test_destructive_functions_disabled[import os; os.system('echo pwned')]"
    ): "os.system is there, starts nothing and returns -1",
    "test_mixture_oversampling": "repeat is a setting of a task, a mixture no object to count",
}


class OurTokenizer:
    def __init__(self, tokenizer):
        self.of = tokenizer

    @classmethod
    def train_from_iterator(cls, texts, vocab_size):
        return cls(train_bpe(texts, vocab_size, max_chars=None, doc_cap=None))

    def get_vocab_size(self):
        return self.of.vocab_size

    def get_bos_token_id(self):
        return self.of.bos_id

    def encode_special(self, name):
        return self.of.specials[name]

    def encode(self, text, prepend=None, append=None):
        if isinstance(text, list):
            return [self.encode(one, prepend, append) for one in text]
        around = [[] if name is None else [self.of.specials[name]] for name in (prepend, append)]
        return around[0] + self.of.encode(text) + around[1]

    def decode(self, ids):
        return self.of.decode(ids)

    def render_conversation(self, conversation, max_tokens=2048):
        ids, mask = render(self.of, conversation)
        return ids[:max_tokens], mask[:max_tokens]

    def render_for_completion(self, conversation):
        return render_prompt(self.of, conversation)


class OurEngine:
    """On a small network whose head is zero: uniform logits, as the original's stand-in gives
    them."""

    def __init__(self, model, tokenizer):
        sizes = model.config
        self.tokenizer = BPETokenizer([])  # bytes and the specials
        gpt = GPT.build(
            GPTConfig(
                sizes.sequence_len,
                self.tokenizer.vocab_size,
                sizes.n_layer,
                sizes.n_head,
                sizes.n_kv_head,
                sizes.n_embd,
            )
        )
        torch.nn.init.zeros_(gpt.lm_head.weight)
        self.of = Engine(gpt, self.tokenizer)

    def generate_batch(
        self, prompt, num_samples=1, max_tokens=None, temperature=1.0, top_k=None, seed=42
    ):
        bos = self.tokenizer.bos_id
        ids = [token if token < 256 else bos for token in prompt]
        found = self.of.sample(
            [ids],
            Sampling(temperature=temperature, top_k=top_k, max_tokens=max_tokens, seed=seed),
            num_samples,
            [str(seed)],
        )[0]
        return [prompt + list(one.ids) for one in found], [
            [0] * len(prompt) + [1] * len(one.ids) for one in found
        ]

    def generate(self, prompt, **settings):
        rows, _ = self.generate_batch(prompt, **settings)
        for column in zip(*(row[len(prompt) :] for row in rows), strict=False):
            yield list(column), [1] * len(column)


@dataclass
class OurExecution:
    success: bool
    stdout: str
    stderr: str
    error: str | None
    timeout: bool
    memory_exceeded: bool


def execute_code(program, timeout=5.0):
    found = run_python(program, ProgramLimits(wall_seconds=timeout))
    return OurExecution(
        **{name: getattr(found, name) for name in OurExecution.__dataclass_fields__}
    )


class OurOptimizer(GroupedOptimizer):
    def __init__(self, groups):
        groups = [{("rule" if k == "kind" else k): v for k, v in group.items()} for group in groups]
        for group in groups:  # 1 is refused, and means a second moment that stays where it is
            group.update({"beta2": np.nextafter(1.0, 0.0)} if group.get("beta2") == 1 else {})
        super().__init__(groups)


class OurTask(Task):
    kind = "chat"

    def __init__(self, **common):
        super().__init__(name="theirs", **common)

    def total(self):
        return self.num_examples()

    def conversation(self, i):
        return self.get_example(i)


class HubRows(HubTask):
    kind = "chat"

    def conversation(self, i):
        return self.row(i)


class OurRows:
    """The order that `HubTask` reads rows in; a table alone is the library's business."""

    def __init__(self, table):
        self.table = table

    def shuffle(self, seed):
        assert seed == 42, "ours has no other"
        task = HubRows(dataset="theirs", subset=None, split="train", name="theirs")
        task.rows = self.table.to_pylist()
        return task

    def __len__(self):
        return self.table.num_rows

    def __getitem__(self, i):
        return self.table.slice(i, 1).to_pylist()[0]


def module(name, **content):
    sys.modules[name] = found = types.ModuleType(name)
    vars(found).update(content)
    return found


module("nanochat.engine", Engine=OurEngine, KVCache=None)
module("nanochat.execution", execute_code=execute_code)
vars(nanochat.tokenizer).update(RustBPETokenizer=OurTokenizer, SPECIAL_TOKENS=list(SPECIAL_TOKENS))
vars(nanochat.optim).update(MuonAdamW=OurOptimizer)
module("tasks")
module(
    "tasks.common",
    Task=OurTask,
    TaskMixture=None,
    HubDataset=OurRows,
    np=np,
    render_mc=lambda question, letters, choices: prompt(question, choices, letters),
)

torch_has_cuda = torch.cuda.is_available
# while tests are collected: the optimizer's ask for a GPU, and run as well on a CPU
torch.cuda.is_available = lambda: True


def pytest_collection_modifyitems(items):
    torch.cuda.is_available = torch_has_cuda
    for item in items:
        if hasattr(item.module, "DEVICE") and not torch_has_cuda():
            item.module.DEVICE = "cpu"
        if reason := NOT_COMPARABLE.get(item.name):
            item.add_marker(pytest.mark.skip(reason=reason))
