"""A step that is shared out over ranks is the step of one process, whatever the shapes
and the number of ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.distributed.sharing import SMALL, deal, parts_of, rows_in, to_owners
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import GroupedOptimizer
from tests.distributed.ranks import together

# fewer matrices of a shape than ranks, odd shapes, rows that do not divide, fewer rows than ranks
MATRICES = [(24, 24), (24, 24), (40, 39), (7, 96), (1, 12)]
TABLES = [(101, 16), (2, 600), (5,)]
STEPS = 4


def groups(ns_dtype: str, place: Callable[[torch.Tensor], torch.Tensor]) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(place(torch.randn(s, generator=g))) for s in MATRICES + TABLES]
    matrices, tables = made[: len(MATRICES)], made[len(MATRICES) :]
    muon = {"rule": "muon", "lr": 0.02, "weight_decay": 0.1, "ns_dtype": ns_dtype}
    named = [("matrices", matrices, muon), ("tables", tables, {"rule": "adamw", "lr": 0.1})]
    return [
        {"params": params, "names": [f"{name}.{i}" for i in range(len(params))], **options}
        for name, params, options in named
    ]


def stepped(
    ns_dtype: str, by_rows: bool = False, saved: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Parameters by name after some steps with gradients that all ranks know, and this rank's
    state. `by_rows`: as FSDP2 places them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if by_rows else None

    def place(tensor: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0)]) if by_rows else tensor

    optimizer = GroupedOptimizer(groups(ns_dtype, place))
    if saved is not None:
        optimizer.load_state_dict(saved)
    g = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for _, p, _, _ in optimizer.named():
            p.grad = place(torch.randn(p.shape, generator=g))
        optimizer.step()
    weights = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p, _, _ in optimizer.named()
    }
    return {"weights": weights, **optimizer.state_dict()}


def gathered(ranks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The state of all ranks by name; rows that two ranks have, or none, would
    show as another shape."""
    found: dict[str, dict[str, Any]] = {}
    for rank in sorted(ranks, key=lambda rank: sorted(rank["rows"].items())):
        for group in rank["param_groups"]:
            for name, number in zip(group["names"], group["params"], strict=True):
                for key, value in rank["state"].get(number, {}).items():
                    found.setdefault(name, {}).setdefault(key, {})[rank["rows"][name]] = value
    return {
        name: {
            key: torch.cat([by_rows[rows] for rows in sorted(by_rows)])
            if torch.is_tensor(value := next(iter(by_rows.values()))) and value.ndim
            else value
            for key, by_rows in state.items()
        }
        for name, state in found.items()
    }


def assert_same(mine: dict[str, Any], other: dict[str, Any], **close: float) -> None:
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        if isinstance(value, dict):
            assert_same(value, other[name], **close)
        else:
            torch.testing.assert_close(
                value, other[name], **close, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("world_size", "ns_dtype", "by_rows"),
    [
        (2, "float32", False),
        (3, "bfloat16", False),
        (4, "float32", False),
        (2, "bfloat16", True),
        (3, "float32", True),
        (4, "float32", True),
    ],
)
def test_sharded_equals_alone(
    world_size: int, ns_dtype: str, by_rows: bool, tmp_path: Path
) -> None:
    alone = stepped(ns_dtype)
    ranks = together(world_size, stepped, tmp_path, ns_dtype, by_rows)
    close = {"rtol": 0, "atol": 1e-6}  # batches of other sizes
    for rank in ranks:
        assert_same(rank["weights"], ranks[0]["weights"], rtol=0, atol=0)
        assert_same(rank["weights"], alone["weights"], **close)
    assert_same(gathered(ranks), gathered([alone]), **close)
    held = [
        sum(v.numel() for s in r["state"].values() for v in s.values() if torch.is_tensor(v))
        for r in ranks
    ]
    whole = sum(
        v.numel() for s in alone["state"].values() for v in s.values() if torch.is_tensor(v)
    )
    assert sum(held) == whole and max(held) < 0.75 * whole


@pytest.mark.parametrize("by_rows", [False, True])
def test_state_of_one_process_is_shared_out(by_rows: bool, tmp_path: Path) -> None:
    first = stepped("float32")
    alone = stepped("float32", saved=first)
    saved = {k: v for k, v in first.items() if k != "weights"}
    ranks = together(3, stepped, tmp_path, "float32", by_rows, saved)
    assert_same(gathered(ranks), gathered([alone]), rtol=0, atol=1e-6)


def added_up() -> dict[str, Any]:
    """Of this rank: the rows it updates of gradients that DDP has added up on their owners."""
    model = torch.nn.ParameterDict(
        {str(i): torch.zeros(s) for i, s in enumerate([*MATRICES, *TABLES, ()])}
    )

    class Sum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, factor: float) -> torch.Tensor:
            weights = (torch.arange(p.numel()).view(p.shape) for p in model.values())
            return factor * sum((p * w).sum() for p, w in zip(model.values(), weights, strict=True))

    params = list(model.values())
    by_rows = [i >= len(MATRICES) for i in range(len(params))]
    parts = parts_of([tuple(p.shape) for p in params], by_rows, dist.get_world_size())
    ddp = torch.nn.parallel.DistributedDataParallel(Sum(), gradient_as_bucket_view=True)
    ddp.register_comm_hook(dict(zip(params, parts, strict=True)), to_owners)
    for _ in range(2):  # two steps: buckets are others after the first
        ddp.zero_grad()
        with ddp.no_sync():
            ddp(10.0).backward()
        ddp(dist.get_rank() + 1.0).backward()
    return {
        f"{i}/{share.start}": rows_in(params[i].grad, share).clone()  # type: ignore[arg-type]
        for i, shares in enumerate(parts)
        for share in shares
        if share.owner == dist.get_rank()
    }


def test_gradients_are_added_up_where_they_are_used(tmp_path: Path) -> None:
    """Each row once, as its mean over three ranks: 10 of a first micro-batch, 1, 2, 3 of the
    last."""
    ranks = together(3, added_up, tmp_path)
    for i, shape in enumerate([*MATRICES, *TABLES, ()]):
        pieces = {
            int(name.partition("/")[2]): rows
            for rank in ranks
            for name, rows in rank.items()
            if name.startswith(f"{i}/")
        }
        whole = torch.cat([pieces[start] for start in sorted(pieces)])
        expected = 12.0 * torch.arange(whole.numel()).view(whole.shape)
        torch.testing.assert_close(whole, expected)
        assert whole.numel() == torch.Size(shape).numel()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 64])
def test_parts_cover_every_row_once(world_size: int) -> None:
    shapes = [*MATRICES, *TABLES, (SMALL, 1), ()]
    by_rows = [False] * len(MATRICES) + [True] * (len(TABLES) + 2)
    for shape, whole, parts in zip(
        shapes, by_rows, parts_of(shapes, by_rows, world_size), strict=True
    ):
        edges = [(part.start, part.stop) for part in parts]
        assert [row for a, b in edges for row in range(a, b)] == list(
            range(shape[0] if shape else 1)
        )
        assert whole or len(parts) == 1
        assert all(0 <= part.owner < world_size for part in parts)


def test_matrices_of_d12_are_balanced() -> None:
    """Predicted time of the busiest of 8 ranks over the mean: within 3 %."""
    gpt_config = optim_config(12)
    with torch.device("meta"):
        gpt = GPT(gpt_config)
    shapes = [tuple(p.shape) for n, p in gpt.named_parameters() if n.startswith("transformer.h")]
    costs = [m * n * min(m, n) for m, n in shapes]
    loads = [0.0] * 8
    for cost, owner in zip(costs, deal(costs, 8), strict=True):
        loads[owner] += cost
    assert max(loads) * 8 / sum(loads) < 1.03


def optim_config(depth: int) -> GPTConfig:
    from nanochat.gpt import from_depth

    return from_depth(depth, vocab_size=512, sequence_len=64)


def test_every_rule_says_whether_its_rows_are_apart() -> None:
    groups = compose_choice("optim", "muon")["groups"]
    with torch.device("meta"):
        gpt = GPT(optim_config(4))
    made = optim.build(gpt, groups)
    assert {rule.name: rule.BY_ROWS for _, _, rule, _ in made.named()} == {
        "adamw": True,
        "muon": False,
    }
