"""CPU time of a step in two checkouts, in turn: `python between_commits.py OLD NEW DEPTH VOCAB MODE
ROUNDS`.

OLD and NEW are roots of checkouts; both run with this Python. MODE: one, rows (16 prompts), samples
(16 of one prompt), each with +compile or +bf16; or train (256 tokens forward and backward). One
process for each checkout, one thread, a block of steps at a time, their order turned round by
round. CPU time, not wall time: on a machine that is shared, wall time says how busy the others are.
"""

import json
import random
import statistics
import subprocess
import sys
import time


def work(root: str, depth: int, vocab: int, mode: str) -> None:
    """A line of seconds per step, as JSON, for each line that comes in."""
    sys.path.insert(0, root + "/src")
    import torch

    from nanochat.gpt import GPT, from_depth
    from nanochat.inference.engine import Engine
    from nanochat.inference.measure import any_tokenizer
    from nanochat.inference.sampling import Sampling

    torch.set_num_threads(1)
    dtype = torch.bfloat16 if "+bf16" in mode else torch.float32
    gpt = GPT.build(from_depth(depth, vocab_size=vocab), compute_dtype=dtype)
    tokenizer, drawn = any_tokenizer(vocab), random.Random(0)

    def prompt() -> list[int]:
        return [drawn.randrange(vocab - 300) for _ in range(128)]

    def train() -> list[float]:
        idx = torch.randint(vocab, (1, 256))
        start = time.process_time()
        gpt.loss_sum(idx, idx).backward()
        gpt.zero_grad()
        return [time.process_time() - start]

    rows = 1 if mode.startswith("one") else 16
    samples = rows if mode.startswith("samples") else 1
    engine = Engine(
        gpt, tokenizer, max_rows=rows, prefill_tokens=None, pool_bytes=0, compile="+compile" in mode
    )

    def decode() -> list[float]:
        for _ in range(rows // samples):
            engine.submit(prompt(), Sampling(temperature=0, max_tokens=40, tools=False), samples)
        seconds = []
        while engine.busy:
            start = time.process_time()
            engine.step()
            seconds.append(time.process_time() - start)
        return seconds[1:]

    def block() -> list[float]:
        if mode == "train":
            return train()
        with engine.frozen():
            return decode()

    block()
    for _ in sys.stdin:
        print(json.dumps(block()), flush=True)


def compare(old: str, new: str, depth: str, vocab: str, mode: str, rounds: int) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, __file__, "work"]
    workers = [
        subprocess.Popen([*command, root, depth, vocab, mode], **pipes) for root in (old, new)
    ]  # type: ignore[call-overload]
    found: list[list[float]] = [[], []]
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            workers[which].stdin.write("\n")
            workers[which].stdin.flush()
            found[which].append(statistics.median(json.loads(workers[which].stdout.readline())))
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    ratios = [a / b for a, b in zip(*found, strict=True)]
    before, now = (1000 * statistics.median(seconds) for seconds in found)
    print(
        f"d{depth} {mode}: {before:.2f} ms of CPU a step before, {now:.2f} now; "
        f"{statistics.median(ratios):.3f} x as fast ({min(ratios):.2f}-{max(ratios):.2f})"
    )


if sys.argv[1] == "work":
    work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
else:
    compare(*sys.argv[1:6], int(sys.argv[6]))
