"""One step of everything that runs on a card, on fake tensors: prints what was found as JSON.

    python tests/without_a_card/steps.py FOLDER      FOLDER: for the compiled library

A process of its own, since a CUDA that is not there changes PyTorch for the whole process.
"""

import json
import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.without_a_card.watch import make_watch, provide_cuda

provide_cuda(Path(sys.argv[1]))

import lightning as L  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.accelerators import CPUAccelerator  # noqa: E402
from lightning.pytorch.strategies import SingleDeviceStrategy  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._functorch.aot_autograd import make_boxed_func  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from nanochat import optim  # noqa: E402
from nanochat.callbacks.report import Report  # noqa: E402
from nanochat.commands.configs import compose_choice  # noqa: E402
from nanochat.gpt import GPT, GPTConfig, attention, build_arch, fp8, from_depth, loss  # noqa: E402
from nanochat.gpt.model import Linear  # noqa: E402
from nanochat.inference import fixed_step  # noqa: E402
from nanochat.inference.cache import KVCache  # noqa: E402
from nanochat.inference.frozen_gpt import FrozenGPT  # noqa: E402
from nanochat.inference.sampling import Sampling, begin_draw  # noqa: E402
from nanochat.modules.next_token import NextTokenModule  # noqa: E402
from nanochat.modules.rl import RLModule  # noqa: E402
from nanochat.optim import muon  # noqa: E402
from nanochat.rl.algorithms import build_algorithm  # noqa: E402
from nanochat.rl.collect import Experience, Row  # noqa: E402

# of what is not there: an H100, its counters, streams and events
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.reset_peak_memory_stats = torch.cuda.synchronize = lambda *_: None
torch.cuda.max_memory_allocated = lambda *_: 0
torch.cuda.current_stream = lambda *_: None
torch.cuda.Event = lambda: SimpleNamespace(record=lambda *_: None)
# no kernel of SDPA is to be had here; written out it would compute in fp32, which says nothing
torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
Watch = make_watch()
CARD = torch.device("cuda", 0)
B, T, V = 2, 256, 500


def sizes(arch: str) -> GPTConfig:
    """Four layers, so that there are short and long windows; the vocabulary is padded."""
    built = build_arch(compose_choice("arch", arch))
    return from_depth(4, vocab_size=V, sequence_len=T, head_dim=64, arch=built)


def network(arch: str) -> GPT:
    with CARD:
        gpt = GPT(sizes(arch))
    gpt.compute_dtype = torch.bfloat16
    gpt.grow_rope(T)
    return gpt


class OnTheCard(SingleDeviceStrategy):
    """What Lightning does on one GPU, but for placing the network, which is there already."""

    def __init__(self) -> None:
        super().__init__(CARD, accelerator=CPUAccelerator())

    def setup_environment(self) -> None: ...

    def model_to_device(self) -> None: ...

    def teardown(self) -> None: ...  # moves it away again


class Batches:
    def __iter__(self):
        while True:
            idx = torch.zeros(B, T, dtype=torch.long)
            yield {"idx": idx, "targets": idx.clone(), "num_targets": 2 * B * T, "epoch": 0}


def fit(module, batches, clip: float | None = None) -> set:
    """What is found in two steps of two micro-batches by Lightning's loop, with the run's
    report."""
    report = Report(
        batch_tokens=2 * B * T,
        flops_per_token=1,
        peak_flops=1e12,
        log_every=100,
        run_folder=Path(),
        show="none",
    )
    report.on_train_end = lambda *_: None  # reads the losses
    trainer = L.Trainer(
        strategy=OnTheCard(),
        max_steps=2,
        max_epochs=-1,
        accumulate_grad_batches=2 if module.automatic_optimization else 1,
        gradient_clip_val=clip,
        callbacks=[report],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    with Watch(torch.bfloat16) as watch:
        trainer.fit(module, batches)
    assert watch.operations > 1000, "nothing of it ran on the card"
    return watch.found


def given(rule: str) -> tuple:
    """The optimizer, the schedule and the length of a run."""
    choice = compose_choice("optim", rule)

    def build(gpt: GPT) -> optim.GroupedOptimizer:
        return optim.build(gpt, choice["groups"], weight_decay=0.1)

    return build, optim.build_schedule(choice["schedule"]), 10


def eight_bits(gpt: GPT) -> None:
    for layer in gpt.transformer.h.modules():
        if isinstance(layer, Linear) and fp8.takes(layer.weight):
            layer.multiply = fp8.multiply


def flash(gpt: GPT) -> None:
    gpt.attend = attention.flash


def text_step(arch: str, rule: str, plant=None) -> set:
    """Phases base, mid and sft, which differ in their data alone."""
    gpt = network(arch)
    if plant:
        plant(gpt)
    return fit(NextTokenModule(gpt, *given(rule)), Batches(), clip=1.0)


class Steps:
    """As of phase rl, where a step brings its own data."""

    def __iter__(self):
        while True:
            yield {"epoch": 0}


class Answers:
    """A collector that asks nothing: two answers of different lengths."""

    sampling = Sampling(top_k=5)

    def __init__(self, algorithm: str) -> None:
        self.algorithm = build_algorithm(compose_choice("algo", algorithm))

    def collect(self, gpt: GPT, asked: int) -> Experience:
        rows = [
            Row(
                [1] * n,
                [0] * 4 + [1] * (n - 4),
                [-1.0] * n,
                0.5,
                0.1,
                n % self.algorithm.minibatches,
            )
            for n in (20, 30, 40, 50)
        ]
        return Experience([], rows, asked + 1, {"rl/reward": 0.0})


def rl_step(arch: str, algorithm: str) -> set:
    module = RLModule(
        network(arch), *given("muon"), collector=Answers(algorithm), micro_tokens=100, clip_norm=1.0
    )
    return fit(module, Steps())


def decoding(arch: str, compile: bool) -> set:
    """Prompts read whole and in chunks, tokens decoded and drawn, the next step begun before they
    are known, a row dropped. With `compile` the step that is recorded."""
    gpt = FrozenGPT.of(network(arch))
    if compile:
        fixed_step.compiled = lambda gpt: fixed_step.fixed_step  # as it is; compiled below
        fixed_step.CompiledStep._record = _recorded
    with Watch(torch.bfloat16) as watch, torch.inference_mode():
        cache, alone = KVCache(gpt, 8, compile=compile), KVCache(gpt, 1)
        alone.read([1] * 20)
        alone.read([2] * 9, before=1)
        cache.step([], [[5, 6, 7], [8] * 40], [2, 1])
        cache.adopt(alone, 1)
        for sampling in (
            Sampling(temperature=0),
            Sampling(top_k=5),
            Sampling(top_p=0.9, min_p=0.1),
        ):
            logits = cache.step([(7, 8)] * 4)
            drawing = begin_draw(logits, [sampling] * 4, [0.5] * 4)
            ahead = cache.look_ahead([7] * 4, drawing.ids)
            ahead.tokens = [8] * 4
        cache.step([(7, 8)] * 4, [[1, 2, 3]], [1])
        cache.drop(0)
    return watch.found


def compiled(arch: str, change=lambda gpt: None) -> set:
    """What torch.compile makes of the parts that are compiled, each a single graph: the trunk and
    its backward pass, a chunk of the loss, Muon's update, the step that is recorded."""
    watch, graphs = Watch(torch.bfloat16), []

    def look(graph, inputs):
        graphs.append(graph)
        for node in graph.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                given = [x.meta["val"] for x in node.all_input_nodes]
                args = torch.fx.map_arg(node.args, lambda x: x.meta["val"])
                watch.look(node.target, given, args, node.kwargs)
        return make_boxed_func(graph.forward)

    def one_graph(function, *args):
        backend = aot_autograd(fw_compiler=look, bw_compiler=look)
        return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*args)

    gpt, idx = network(arch), torch.zeros(B, T, dtype=torch.long, device=CARD)
    change(gpt)
    one_graph(gpt._run_trunk, idx, gpt.cos[:, :T], gpt.sin[:, :T]).sum().backward()
    z = torch.zeros(B * T, V, dtype=torch.bfloat16, device=CARD)
    one_graph(loss.capped_loss_and_grad, z, idx.flatten(), 15.0)
    g, second = torch.zeros(2, 64, 128, device=CARD), torch.zeros(2, 1, 128, device=CARD)
    one_graph(muon.modern_update, g, second, 0.9, 5, torch.bfloat16)
    one_graph(muon.classic_update, g, 5, torch.bfloat16)
    frozen = FrozenGPT.of(gpt)
    with torch.inference_mode():
        cache = KVCache(frozen, 2)
        cache.reserve(T, 2)
        numbers = torch.zeros(2, 3, dtype=torch.long, device=CARD)
        one_graph(partial(fixed_step.fixed_step, frozen), numbers, cache.keys, cache.values)
    assert len(graphs) == 6, "the trunk has two"
    return watch.found


def _recorded(step, numbers, keys, values) -> None:
    step._numbers = numbers.clone()
    step._logits = step._run(step._numbers, keys, values)
    step._graph = SimpleNamespace(replay=lambda: None)


def cpu_index(gpt: GPT) -> None:
    gpt.embed = lambda idx: (gpt.transformer.wte.weight[torch.zeros(B, T, dtype=torch.long)], None)


def item(gpt: GPT) -> None:
    gpt.loss_sum = lambda *batch: GPT.loss_sum(gpt, *batch) / GPT.loss_sum(gpt, *batch).item()


def leak(gpt: GPT) -> None:
    embed = gpt.embed
    gpt.embed = lambda idx: (embed(idx)[0] * torch.ones(1, device=CARD), None)


STEPS = {
    "text modern": lambda: text_step("modern", "muon"),
    "text classic": lambda: text_step("classic", "muon_classic"),
    "text modern in fp8": lambda: text_step("modern", "muon", eight_bits),
    "text modern by FlashAttention": lambda: text_step("modern", "muon", flash),
    "rl modern nanochat": lambda: rl_step("modern", "nanochat"),
    "rl classic dapo": lambda: rl_step("classic", "dapo"),
    "decoding modern": lambda: decoding("modern", False),
    "decoding classic": lambda: decoding("classic", False),
    "decoding modern recorded": lambda: decoding("modern", True),
    "decoding classic recorded": lambda: decoding("classic", True),
    "compiled modern": lambda: compiled("modern"),
    "compiled classic": lambda: compiled("classic"),
    "compiled modern in fp8": lambda: compiled("modern", eight_bits),
    "planted: an index on the CPU": lambda: text_step("modern", "muon", cpu_index),
    "planted: .item() in the step": lambda: text_step("modern", "muon", item),
    "planted: fp32 in the stream": lambda: text_step("modern", "muon", leak),
}

if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    results = {}
    for name in sys.argv[2:] or STEPS:
        torch._dynamo.reset()
        with FakeTensorMode(allow_non_fake_inputs=True):
            results[name] = sorted(STEPS[name]())
    print(json.dumps(results))
