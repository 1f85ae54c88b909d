"""The loop over micro-batches, whatever they are made of."""

from itertools import islice

import pytest
from torch.utils.data import DataLoader

from nanochat.datamodules.by_step import MicroBatches, RowBatches


class Numbered(MicroBatches):
    def micro_batch(self, step: int, part: int) -> dict[str, int]:
        return {"step": step, "part": part}


@pytest.mark.parametrize("workers", [0, 3])
def test_micro_batches_come_in_order_and_go_on_from_any_step(workers: int) -> None:
    batches = DataLoader(Numbered(start_step=5, accumulate=2), batch_size=None, num_workers=workers)
    assert [tuple(b.values()) for b in islice(batches, 5)] == [
        (5, 0),
        (5, 1),
        (6, 0),
        (6, 1),
        (7, 0),
    ]


def test_the_first_steps_come_again_wherever_a_run_goes_on() -> None:
    first = [b["step"] for b in islice(Numbered(0, repeat_steps=3), 8)]
    assert first == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [b["step"] for b in islice(Numbered(4, repeat_steps=3), 4)] == first[4:]


def test_the_ranks_share_the_rows_of_a_batch() -> None:
    shares = [RowBatches(None, 12, 2, 3, rank, 0) for rank in range(3)]
    rows = [list(share.numbers(4, part)) for share in shares for part in range(share.accumulate)]
    assert [row for part in rows for row in part] == list(range(48, 60)) and all(
        share.accumulate == 2 for share in shares
    )
