"""The original's side of `run.py`: `python theirs.py PART ERA CHECKOUT FOLDER`. Writes what its
code gives for `inputs.py`."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

part, era, checkout, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
os.environ.update(
    NANOCHAT_DTYPE="bfloat16" if part.endswith("bf16") else "float32", NANOCHAT_BASE_DIR=str(folder)
)
sys.path.insert(0, str(Path(__file__).parent))
import inputs  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(checkout))  # before ours, which has the same name
# imported by what is not called here
for name in ("rustbpe", "wandb", "psutil", "kernels", "filelock"):
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = types.SimpleNamespace(FileLock=None)
DTYPE = torch.float64 if part.endswith("fp64") else torch.float32


def in_float64() -> None:
    """Nothing is rounded on the way but what is meant to be: RoPE's tables."""
    import nanochat.common

    inputs.widen(DTYPE)
    nanochat.common.COMPUTE_DTYPE = torch.float64
    plain = torch.nn.functional.rms_norm
    torch.nn.functional.rms_norm = lambda x, shape: plain(
        x, shape, eps=torch.finfo(torch.float32).eps
    )


def untrained():
    """Its GPT as its script begins."""
    import nanochat.common

    assert checkout in Path(nanochat.common.__file__).parents
    from nanochat.gpt import GPT, GPTConfig

    known = {field.name for field in dataclasses.fields(GPTConfig)}
    pattern = {"window_pattern": inputs.PATTERN} if "window_pattern" in known else {}
    with torch.device("meta"):
        gpt = GPT(GPTConfig(**inputs.SIZES, **pattern))
    gpt.to_empty(device="cpu")
    torch.manual_seed(42)
    gpt.init_weights()
    return gpt


def network():
    """Its GPT with the fixed weights."""
    gpt = untrained()
    for p in gpt.parameters():
        p.data = p.data.to(DTYPE)  # not the tables of RoPE
    gpt.load_state_dict(
        inputs.fixed_weights({name: tuple(p.shape) for name, p in gpt.state_dict().items()})
    )
    return gpt


def copy_of(gpt):
    return {name: tensor.detach().clone() for name, tensor in gpt.state_dict().items()}


def trained(gpt, step):
    losses, gradient, first = [], None, None
    for number, batch in enumerate(inputs.batches()):
        loss = gpt(batch[:, :-1], batch[:, 1:].contiguous())
        loss.backward()
        gradient = gradient or {name: p.grad.clone() for name, p in gpt.named_parameters()}
        step(number)
        gpt.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        first = first or copy_of(gpt)
    return {"losses": losses, "gradient": gradient, "first": first, "after": copy_of(gpt)}


def numbers():
    gpt = network()
    with torch.no_grad():
        logits = gpt(inputs.batches()[0, :, :-1])
    found = {
        "start": copy_of(untrained()),
        "shapes": {k: tuple(v.shape) for k, v in gpt.state_dict().items()},
        "logits": logits,
    }
    if part.endswith("bf16"):
        torch.save(found, folder / f"{part}.pt")
        return

    def sgd(number):
        with torch.no_grad():
            for p in gpt.parameters():
                p.sub_(inputs.RATE * p.grad)

    found["sgd"] = trained(gpt, sgd)
    if era in ("classic", "modern"):
        gpt = network()
        made = (
            gpt.setup_optimizers()
            if era == "classic"
            else gpt.setup_optimizer(0.008, 0.3, 0.02, inputs.WEIGHT_DECAY, 0.5)
        )
        optimizers = made if isinstance(made, list) else [made]
        for optimizer in optimizers:
            for name, value in vars(optimizer).items():  # its hyperparameters, kept as fp32 tensors
                if isinstance(value, torch.Tensor):
                    setattr(optimizer, name, value.to(DTYPE))

        def own(number):
            rate, momentum, decay = inputs.schedule(number)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * rate
                    if "momentum" in group:
                        group["momentum"] = momentum
                    if group.get("kind") == "muon":
                        group["weight_decay"] = decay
                optimizer.step()

        found["own"] = trained(gpt, own)
        for k, optimizer in enumerate(optimizers):
            torch.save(optimizer.state_dict(), folder / f"optim_{era}_{k}.pt")
    torch.save(found, folder / f"{part}.pt")


class Planned(Exception):
    """Its script has planned its run."""


def plan():
    """What `scripts/base_train.py` decides, run as it is until it would read data for the first
    evaluation."""
    import nanochat.dataloader

    import nanochat.gpt
    import nanochat.tokenizer

    vocab = 65536 if era == "classic" else 32768
    nanochat.tokenizer.get_tokenizer = lambda: types.SimpleNamespace(get_vocab_size=lambda: vocab)
    nanochat.tokenizer.get_token_bytes = lambda device=None: None

    def stop(*args, **kwargs):
        raise Planned

    for name in dir(nanochat.dataloader):
        if name.startswith("tokenizing_distributed"):
            first = lambda *args, **kwargs: iter([(None, None, {})])  # noqa: E731
            setattr(nanochat.dataloader, name, first if "with_state" in name else stop)
    torch.nn.Module.to_empty = lambda self, device: self  # sizes are all that is looked at
    nanochat.gpt.GPT.init_weights = lambda self: None
    for name in ("base_eval",):
        sys.modules[f"scripts.{name}"] = types.SimpleNamespace(
            evaluate_core=None, evaluate_model=None
        )
    import nanochat.engine

    os.chdir(checkout)  # its configurator is read by a relative path
    source = (checkout / "scripts" / "base_train.py").read_text()
    found = {}
    for depth in inputs.DEPTHS:
        sys.argv = [
            "base_train",
            f"--depth={depth}",
            "--device_type=cpu" if era == "classic" else "--device-type=cpu",
        ]
        space = {"__name__": "__main__"}
        with contextlib.suppress(Planned):
            exec(compile(source, "base_train", "exec"), space)
        model, steps = space["orig_model"], int(space["num_iterations"])
        names = {id(p): name for name, p in model.named_parameters()}
        made = space["optimizers"] if "optimizers" in space else [space["optimizer"]]
        rules = {}
        for optimizer in made:
            for group in optimizer.param_groups:
                keys = (
                    ("initial_lr", "betas", "eps", "weight_decay")
                    if "betas" in group
                    else ("initial_lr", "momentum", "ns_steps", "beta2", "weight_decay")
                )
                rule = {key: group[key] for key in keys if key in group}
                rules.update({names[id(p)]: rule for p in group["params"]})
        decay = space.get("get_weight_decay", lambda it: 0.0)
        found[depth] = {
            "shapes": {name: tuple(p.shape) for name, p in model.named_parameters()},
            "flops": int(model.estimate_flops()),
            "batch": space["total_batch_size"],
            "steps": steps,
            "rules": rules,
            "schedule": [
                (space["get_lr_multiplier"](s), space["get_muon_momentum"](s), decay(s))
                for s in range(steps)
            ],
        }
    torch.save(found, folder / "plan.pt")


def encoding(ranks):
    import tiktoken

    from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer

    specials = {name: len(ranks) + k for k, name in enumerate(SPECIAL_TOKENS)}
    return RustBPETokenizer(
        tiktoken.Encoding(
            "peer", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=specials
        ),
        "<|bos|>",
    )


def chats():
    """Its tokenizer on tokens that ours was trained to; where `rustbpe` is there, also its
    training."""
    ranks = {
        bytes.fromhex(token): rank
        for rank, token in enumerate(json.loads((folder / "tokens.json").read_text()))
    }
    tokenizer, rows = encoding(ranks), []
    for conversation in inputs.conversations():
        try:
            row = [
                *tokenizer.render_conversation(conversation, max_tokens=10**9),
                tokenizer.render_for_completion(conversation),
            ]
        except Exception as error:
            row = f"{type(error).__name__}: {error}"
        rows.append(row)
    found = {"rows": rows}
    if hasattr(sys.modules["rustbpe"], "Tokenizer"):
        from nanochat.tokenizer import RustBPETokenizer

        made = RustBPETokenizer.train_from_iterator(
            iter(inputs.corpus(folder)), tokenizer.get_vocab_size()
        )
        found["trained"] = [made.enc.decode_single_token_bytes(i).hex() for i in range(len(ranks))]
    (folder / "chats.json").write_text(json.dumps(found))


def tasks():
    import datasets

    place, read = inputs.mirror(folder), datasets.load_dataset
    common = importlib.import_module("tasks.common")

    def load(name, subset=None, split="train"):
        if subset in (None, "default") and name == "openai/openai_humaneval":
            subset = "openai_humaneval"
        return read(str(place / name), subset, split=split, cache_dir=str(folder / "datasets"))

    if hasattr(common, "load_hub_dataset"):
        common.load_hub_dataset = lambda *a, **k: common.HubDataset(
            load(*a, **k).with_format("arrow")[:]
        )
    else:
        datasets.load_dataset = load
    import nanochat.common

    nanochat.common.download_file_with_lock = lambda *args, **kwargs: str(inputs.words(folder))
    from tasks import arc, gsm8k, humaneval, mmlu, smoltalk

    made = {
        "gsm8k": lambda: gsm8k.GSM8K("main", "test"),
        "mmlu": lambda: mmlu.MMLU("all", "test"),
        "arc_easy": lambda: arc.ARC("ARC-Easy", "test"),
        "arc_challenge": lambda: arc.ARC("ARC-Challenge", "test"),
        "humaneval": humaneval.HumanEval,
        "smoltalk": lambda: smoltalk.SmolTalk("test"),
    }
    if (checkout / "tasks" / "spellingbee.py").exists():
        from tasks import spellingbee

        made["simple_spelling"] = lambda: spellingbee.SimpleSpelling(size=400)
        made["spelling_bee"] = lambda: spellingbee.SpellingBee(size=400)
    found = {}
    for name, build in made.items():
        try:
            task = build()
            found[name] = {
                "count": len(task),
                "rows": [inputs.as_json(task[i]) for i in inputs.spread(len(task))],
            }
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
    found["marked"] = [gsm8k.extract_answer(text) for text in inputs.ANSWERS]
    found["code"] = [humaneval.extract_program(text) for text in inputs.PROGRAMS]
    found["imports"] = [humaneval.extract_imports(text) for text in inputs.PROMPTS]
    (folder / "tasks.json").write_text(json.dumps(found))


@torch.no_grad()
def greedy():
    gpt = network().eval()
    from nanochat.engine import Engine

    tokenizer = encoding({bytes([b]): b for b in range(256)})
    ends = (tokenizer.encode_special("<|assistant_end|>"), tokenizer.get_bos_token_id())

    def read_anew(ids):
        """Without its cache, with which the SDPA of these eras forgets the windows, and E3 the
        token before."""
        ids = list(ids)
        for _ in range(60):
            ids.append(int(gpt(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] in ends:
                return ids[:-1]
        return ids

    def cached(ids):
        return Engine(gpt, tokenizer).generate_batch(
            ids, num_samples=1, max_tokens=60, temperature=0
        )[0][0]

    write = read_anew if era in ("e1", "e2", "e3") else cached
    (folder / "greedy.json").write_text(json.dumps([write(ids) for ids in inputs.prompts()]))


if __name__ == "__main__":
    if torch.float64 == DTYPE:
        in_float64()
    inputs.run(part, globals())
