"""Attention of one query per row, both ways, against the definition."""

import math

import pytest
import torch

from nanochat.gpt.attention import reference
from nanochat.inference.one_query import one_query, one_query_in_loops

S, D, LENGTHS = 40, 16, [40, 1, 17]
FP32 = {"rtol": 0, "atol": 1e-5}  # sums of 40 terms of size 1 in 24 bits


@pytest.mark.parametrize("way", ["products", "sdpa", "loops"])
@pytest.mark.parametrize(("H", "G"), [(1, 1), (4, 4), (6, 2), (4, 1)])
def test_one_query_sees_what_its_mask_leaves(H, G, way, monkeypatch):
    monkeypatch.setattr(
        "nanochat.inference.one_query.PRODUCTS_PAY", 0 if way == "products" else 2**40
    )
    drawn = torch.Generator().manual_seed(0)
    q = torch.randn(3, 1, H, D, generator=drawn)
    room = (torch.randn(3, 2 * S, G, D, generator=drawn).transpose(1, 2) for _ in "kv")
    k, v = (x[:, :, :S] for x in room)  # (3, G, S, D), a slice of something with more room, as kept
    visible = torch.arange(S) < torch.tensor(LENGTHS)[:, None]
    if way == "loops":
        y = one_query_in_loops(q[:, 0], k, v, visible)[:, None]
    else:
        mask = torch.zeros(3, S).masked_fill(~visible, -math.inf)[:, None, None]
        y = one_query(q.transpose(1, 2), k, v, mask).transpose(1, 2)
        everything = one_query(q.transpose(1, 2), k, v).transpose(1, 2)
        true = reference(q.double(), k.transpose(1, 2).double(), v.transpose(1, 2).double(), None)
        torch.testing.assert_close(everything.double(), true, **FP32)
    for row, n in enumerate(LENGTHS):
        own = (x[row : row + 1, :, :n].transpose(1, 2).double() for x in (k, v))
        true = reference(q[row : row + 1].double(), *own, None)
        torch.testing.assert_close(y[row : row + 1].double(), true, **FP32)
