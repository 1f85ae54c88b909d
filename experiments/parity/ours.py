"""Our side of `run.py`: `python ours.py PART ERA FOLDER`. Prints rows of a table: how far what our
code gives is from what theirs.py wrote.

`ours.py prepare ERA FOLDER` first writes what theirs.py reads.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

part, era, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
os.environ["NANOCHAT_BASE_DIR"] = str(folder / "ours")
sys.path.insert(0, str(Path(__file__).parent))
import inputs  # noqa: E402
import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from nanochat import optim  # noqa: E402
from nanochat.commands.configs import compose_choice  # noqa: E402
from nanochat.gpt import GPT, GPTConfig, build_arch, counts, loss  # noqa: E402
from nanochat.interop.eras import preset  # noqa: E402
from nanochat.tokenizer.tokenizer import BPETokenizer  # noqa: E402

CONF = Path(__file__).parents[2] / "conf"
DTYPE = torch.float64 if part.endswith("fp64") else torch.float32
COMPUTE = torch.bfloat16 if part.endswith("bf16") else DTYPE
APART = 1e-5
OPTIM = "muon_classic" if era == "classic" else "muon"


def row(what: str, found: object, of: object = "") -> None:
    print(
        f"| {what} | {f'{found:.1e}' if isinstance(found, float) else found} | "
        f"{f'{of:.2g}' if isinstance(of, float) else of} |"
    )


def equal(what: str, mine: list, theirs: list, why: str = "") -> None:
    """A row for a list of which every entry must be the same."""
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    row(what, "equal" if same == len(mine) else f"{len(mine) - same} differ{why}", f"{len(mine)}")


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).abs().max())


def network() -> GPT:
    pattern = {} if era == "classic" else {"window_pattern": inputs.PATTERN}
    config = GPTConfig(**inputs.SIZES, arch=build_arch({**preset(era), **pattern}))
    gpt = GPT.build(config, seed=None, compute_dtype=COMPUTE)
    gpt = gpt.double() if torch.float64 == DTYPE else gpt
    gpt.load_state_dict(
        inputs.fixed_weights({name: tuple(p.shape) for name, p in gpt.state_dict().items()})
    )
    return gpt


def in_float64() -> None:
    """Nothing is rounded on the way but what is meant to be: RoPE's tables."""
    from types import SimpleNamespace

    from nanochat.optim import muon

    inputs.widen(DTYPE)
    loss.torch = SimpleNamespace(**{**vars(torch), "float32": torch.float64})  # type: ignore[attr-defined]
    muon.ns_dtype = lambda group, device: torch.float64


def copy_of(gpt: GPT) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in gpt.state_dict().items()}


def trained(gpt: GPT, step) -> dict:
    losses, gradient, first = [], None, None
    for number, batch in enumerate(inputs.batches()):
        x, y = batch[:, :-1], batch[:, 1:]
        mean = gpt.loss_sum(x, y) / y.numel()
        mean.backward()
        gradient = gradient or {name: p.grad.clone() for name, p in gpt.named_parameters()}
        step(number)
        gpt.zero_grad(set_to_none=True)
        losses.append(float(mean.detach()))
        first = first or copy_of(gpt)
    return {"losses": losses, "gradient": gradient, "first": first, "after": copy_of(gpt)}


def compare_steps(name: str, mine: dict, theirs: dict) -> None:
    row(
        f"losses of {inputs.STEPS} steps, {name}",
        max(abs(a - b) for a, b in zip(mine["losses"], theirs["losses"], strict=True)),
        mine["losses"][0],
    )
    apart = {
        k: (mine["first"][k].double() - v.double()).abs() > APART
        for k, v in theirs["first"].items()
    }
    far = sum(int(found.sum()) for found in apart.values())
    row(
        f"elements more than {APART:g} apart after the first, {name}",
        f"{far}",
        f"{sum(found.numel() for found in apart.values()):,}",
    )
    before = network().state_dict()
    gaps = {key: gap(mine["after"][key], theirs["after"][key]) for key in theirs["after"]}
    worst = max(gaps, key=gaps.get)  # type: ignore[arg-type]
    row(
        f"parameters after them, {name} (worst: {worst})",
        gaps[worst],
        f"moved {gap(theirs['after'][worst], before[worst]):.2g}",
    )


def numbers() -> None:
    theirs, label = torch.load(folder / f"{part}.pt"), part.removeprefix("numbers_")
    gpt = network()
    shapes = {name: tuple(p.shape) for name, p in gpt.state_dict().items()}
    if label == "fp32":
        row(
            "names and shapes of parameters",
            "equal" if shapes == theirs["shapes"] else "DIFFER",
            f"{len(shapes)}",
        )
        start = copy_of(GPT.build(gpt.config, seed=42))
        other = [
            k for k, v in theirs["start"].items() if not torch.equal(start[k], v.to(start[k].dtype))
        ]
        far = max((gap(start[k], theirs["start"][k]) for k in other), default=0.0)
        row(
            "weights at the start from seed 42",
            f"{len(other)} tensors differ, {other[0]}, {far:.1e}" if other else "equal",
            f"{len(start)}",
        )
    idx = inputs.batches()[0, :, :-1]
    size = float(theirs["logits"].abs().max())
    row(f"logits, {label}", gap(gpt(idx), theirs["logits"]), size)
    if label == "fp32":
        with torch.no_grad():
            row("logits, fp32, without gradients", gap(gpt(idx), theirs["logits"]), size)
    if label == "bf16":
        return

    @torch.no_grad()
    def sgd(number: int) -> None:
        for p in gpt.parameters():
            p.sub_(inputs.RATE * p.grad)

    mine = trained(gpt, sgd)
    steepest = max(float(g.abs().max()) for g in theirs["sgd"]["gradient"].values())
    row(
        f"gradients, {label}",
        max(gap(mine["gradient"][k], g) for k, g in theirs["sgd"]["gradient"].items()),
        steepest,
    )
    compare_steps(f"SGD, {label}", mine, theirs["sgd"])
    if "own" in theirs:
        gpt = network()
        groups = compose_choice("optim", OPTIM)["groups"]
        if era == "classic" or torch.bfloat16 == COMPUTE:
            groups["matrix"]["ns_dtype"] = "bfloat16"  # as the original, whatever the hardware
        optimizer = optim.build(gpt, groups, weight_decay=inputs.WEIGHT_DECAY)

        def own(number: int) -> None:
            rate, momentum, decay = inputs.schedule(number)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate
                if group["rule"] == "muon":
                    group["momentum"] = momentum
                    group["weight_decay"] = 0.0 if era == "classic" else decay
            optimizer.step()

        compare_steps(f"its optimizer, {label}", trained(gpt, own), theirs["own"])


def compose(*words: str) -> dict:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", list(words)), resolve=True)  # type: ignore[return-value]


def plan() -> None:
    from nanochat.runs.text import TextRecipe

    theirs = torch.load(folder / "plan.pt")
    which = "experiment=classic" if era == "classic" else "+phase=base"
    columns: dict[str, list] = {}
    for depth, want in theirs.items():
        config = compose(which, f"model.depth={depth}", "dry_run=true", "trainer=1xh100")
        recipe = TextRecipe(config)
        made, sizes = recipe.plan, recipe.gpt_config
        with torch.device("meta"):
            gpt = GPT(sizes)
        schedule = optim.build_schedule(config["optim"]["schedule"])
        optimizer = optim.build(
            gpt, config["optim"]["groups"], lr_factor=made.lr_factor, weight_decay=made.weight_decay
        )
        rules: dict[str, dict] = {}
        for group in optimizer.param_groups:
            rules.update(dict.fromkeys(group["names"], group))
        matrix = next(g for g in optimizer.param_groups if g["rule"] == "muon")[
            "initial_weight_decay"
        ]
        steps = [
            (
                schedule.lr(s, made.steps),
                schedule.momentum(s, made.steps),
                matrix * schedule.decay(s, made.steps),
            )
            for s in range(made.steps)
        ]
        off = [
            max(
                (
                    abs(a[k] - b[k]) / (abs(b[k]) or 1)
                    for a, b in zip(steps, want["schedule"], strict=False)
                ),
                default=0.0,
            )
            for k in range(3)
        ]
        rates = max(
            abs(rules[n]["initial_lr"] / want["rules"][n]["initial_lr"] - 1) for n in want["rules"]
        )
        # Muon's decay is the schedule's, compared above; a group of ours says `initial_` what the
        # original says without
        other = [
            (n, key)
            for n, rule in want["rules"].items()
            for key, value in rule.items()
            if key != "initial_lr"
            and not (key == "weight_decay" and "momentum" in rule)
            and key in rules[n]
            and abs(torch.tensor(rules[n][key]) - torch.tensor(value)).max() > 0
        ]
        for name, mine, their in (
            (
                "names and shapes",
                {n: tuple(p.shape) for n, p in gpt.named_parameters()},
                want["shapes"],
            ),
            ("FLOPs per token", counts.flops_per_token(sizes), want["flops"]),
            ("batch", made.batch_tokens, want["batch"]),
            ("steps", made.steps, want["steps"]),
            ("rate of every parameter (1e-12)", rates < 1e-12, True),
            ("betas, eps, decay, Muon's options", other, []),
            ("rate at every step (1e-12)", off[0] < 1e-12, True),
            ("momentum at every step (1e-12)", off[1] < 1e-12, True),
            ("Muon's decay at every step (1e-12)", off[2] < 1e-12, True),
        ):
            columns.setdefault(name, []).append((depth, mine == their, mine, their))
    for name, found in columns.items():
        bad = [
            f"d{d}: {str(m)[:60]}, original {str(t)[:60]}" for d, same, m, t in found if not same
        ]
        row(
            f"plan d{min(theirs)} to d{max(theirs)}: {name}",
            "equal" if not bad else "; ".join(bad),
            f"{len(found)}",
        )


def prepare() -> None:
    from nanochat.tokenizer.training import train_bpe

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_bpe(inputs.corpus(folder), 2000, max_chars=None, doc_cap=None)
    (folder / "tokens.json").write_text(json.dumps([token.hex() for token in tokenizer.tokens]))
    (folder / "merges.json").write_text(json.dumps(tokenizer.merges))


def chats() -> None:
    from nanochat.tokenizer.conversations import BadConversation, render, render_prompt

    tokenizer = BPETokenizer(json.loads((folder / "merges.json").read_text()))
    theirs = json.loads((folder / "chats.json").read_text())
    if "trained" in theirs:
        equal(
            "tokens of a trained vocabulary of 2,000",
            [t.hex() for t in tokenizer.tokens],
            theirs["trained"],
        )
    refused: Counter[str] = Counter()
    mine: dict[str, list] = {"ids": [], "mask": [], "prompt": []}
    want: dict[str, list] = {"ids": [], "mask": [], "prompt": []}
    for conversation, row_ in zip(inputs.conversations(), theirs["rows"], strict=True):
        for keys, ours_of in (
            (("ids", "mask"), lambda c: render(tokenizer, c)),
            (("prompt",), lambda c: (render_prompt(tokenizer, c),)),
        ):
            try:
                found = ours_of(conversation)
            except BadConversation as error:
                refused[f"{keys[0]}: {error.reason.partition(' (')[2] or error.reason}"] += 1
                continue
            if isinstance(row_, str):
                refused[f"the original's only: {row_}"] += 1
                continue
            for key, value in zip(keys, found, strict=True):
                mine[key].append(list(value))
                want[key].append(row_[("ids", "mask", "prompt").index(key)])
    for key, name in (
        ("ids", "ids of conversations"),
        ("mask", "masks of them"),
        ("prompt", "ids of them up to the last answer"),
    ):
        equal(name, mine[key], want[key])
    row("refused", "; ".join(f"{n} x {why}" for why, n in refused.items()) or "none", "of 400")


def tasks() -> None:
    from nanochat.tasks.arc import ARC
    from nanochat.tasks.gsm8k import GSM8K, marked
    from nanochat.tasks.humaneval import HumanEval, code, imports
    from nanochat.tasks.messages import Messages
    from nanochat.tasks.mmlu import MMLU
    from nanochat.tasks.spelling import SimpleSpelling, SpellingBee

    os.environ["NANOCHAT_HUB_DIR"] = str(inputs.mirror(folder))
    theirs = json.loads((folder / "tasks.json").read_text())
    listed = inputs.words(folder)
    made = {
        "gsm8k": lambda: GSM8K(split="test"),
        "mmlu": lambda: MMLU(split="test"),
        "arc_easy": lambda: ARC(name="arc_easy", subset="ARC-Easy", split="test"),
        "arc_challenge": lambda: ARC(name="arc_challenge", subset="ARC-Challenge", split="test"),
        "humaneval": HumanEval,
        "smoltalk": lambda: Messages(
            name="smoltalk", dataset=inputs.TASKS["smoltalk"][0], split="test"
        ),
        "simple_spelling": lambda: SimpleSpelling(size=400, split="train", path=listed, held_out=0),
        "spelling_bee": lambda: SpellingBee(size=400, split="train", path=listed, held_out=0),
    }
    for name, build in made.items():
        if name not in theirs:
            continue
        if "error" in theirs[name]:
            row(f"task {name}", f"the original: {theirs[name]['error']}")
            continue
        task = build()
        if len(task) != theirs[name]["count"]:
            row(f"task {name}", f"{len(task)} conversations, original {theirs[name]['count']}")
            continue
        mine = [json.loads(inputs.as_json(task[i])) for i in inputs.spread(len(task))]
        want = [json.loads(text) for text in theirs[name]["rows"]]
        # another wording, by intention: letter, word and count are what can be equal
        if name == "spelling_bee":
            mine, want = (
                [c["messages"][1]["content"][-3]["text"] for c in side] for side in (mine, want)
            )
            name += " (call of Python; the wording is our own)"
        keys = {key for c in want if isinstance(c, dict) for key in c}
        mine = [
            {k: v for k, v in c.items() if k in keys} if isinstance(c, dict) else c for c in mine
        ]
        equal(f"task {name}", mine, want)
        if mine != want:
            a, b = next((a, b) for a, b in zip(mine, want, strict=True) if a != b)
            print(f"{str(a)[:600]}\n{str(b)[:600]}", file=sys.stderr)
    for name, function, given in (
        ("marked", marked, inputs.ANSWERS),
        ("code", code, inputs.PROGRAMS),
        ("imports", imports, inputs.PROMPTS),
    ):
        mine = [function(text) for text in given]
        unequal = [text for text, a, b in zip(given, mine, theirs[name], strict=True) if a != b]
        equal(
            {
                "marked": "number that an answer marks",
                "code": "code of an answer",
                "imports": "imports of a question",
            }[name],
            mine,
            theirs[name],
            f": {unequal!r}" if unequal else "",
        )


def greedy() -> None:
    from nanochat.inference.engine import Engine
    from nanochat.inference.sampling import Sampling

    theirs, prompts = json.loads((folder / "greedy.json").read_text()), inputs.prompts()
    engine = Engine(network().eval(), BPETokenizer([]))
    found = engine.sample(
        prompts, Sampling(temperature=0, max_tokens=60), 1, [str(i) for i in range(len(prompts))]
    )
    ends = {engine.tokenizer.specials["<|assistant_end|>"], engine.tokenizer.bos_id}
    mine = [
        prompt + [i for i in one[0].ids if i not in ends]
        for prompt, one in zip(prompts, found, strict=True)
    ]
    equal("greedy answers of 60 tokens", mine, theirs)


if __name__ == "__main__":
    if torch.float64 == DTYPE:
        in_float64()
    inputs.run(part, globals())
