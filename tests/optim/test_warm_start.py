"""An optimizer that begins with the moments of another: by name, where rule, variant and shape
agree."""

import torch

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, from_depth


def network(head_dim: int = 32) -> GPT:
    return GPT.build(
        from_depth(2, vocab_size=128, sequence_len=16, aspect_ratio=32, head_dim=head_dim)
    )


def trained(name: str) -> optim.GroupedOptimizer:
    gpt = network()
    optimizer = optim.build(gpt, compose_choice("optim", name)["groups"], weight_decay=0.1)
    idx = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(0))
    gpt.loss_sum(idx[:, :-1], idx[:, 1:]).backward()
    optimizer.step()
    return optimizer


def fresh(name: str, gpt: GPT | None = None) -> optim.GroupedOptimizer:
    return optim.build(gpt or network(), compose_choice("optim", name)["groups"], weight_decay=0.0)


def states(optimizer: optim.GroupedOptimizer) -> dict[str, dict]:
    return {
        name: optimizer.state[p]
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
        if optimizer.state[p]
    }


def test_every_moment_is_taken_and_every_rate_stays() -> None:
    old, new = trained("muon"), fresh("muon")
    rates = [group["lr"] for group in new.param_groups]
    assert optim.load_moments(new, old.state_dict()) == sum(
        len(g["names"]) for g in new.param_groups
    )
    assert [group["lr"] for group in new.param_groups] == rates
    before, after = states(old), states(new)
    assert before.keys() == after.keys()
    for name, state in before.items():
        assert state.keys() == after[name].keys()
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(after[name][k]))
            for k, v in state.items()
        )


def test_a_rule_of_another_kind_or_variant_begins_afresh_and_steps() -> None:
    """Moments of the classic variant lack what the modern one needs."""
    gpt = network()
    new = fresh("muon", gpt)
    matrices = sum(len(g["names"]) for g in new.param_groups if g["rule"] == "muon")
    everything = sum(len(g["names"]) for g in new.param_groups)
    assert optim.load_moments(new, trained("muon_classic").state_dict()) == everything - matrices
    idx = torch.zeros(1, 4, dtype=torch.long)
    gpt.loss_sum(idx, idx).backward()
    new.step()
    assert optim.load_moments(fresh("muon"), trained("adamw").state_dict()) == everything - matrices


def test_other_shapes_begin_afresh() -> None:
    wider = GPT.build(from_depth(2, vocab_size=128, sequence_len=16, aspect_ratio=64, head_dim=32))
    new = fresh("muon", wider)
    taken = optim.load_moments(new, trained("muon").state_dict())
    same = {
        n
        for n, p in wider.named_parameters()
        if p.shape == dict(network().named_parameters())[n].shape
    }
    assert taken == len(same) < sum(len(g["names"]) for g in new.param_groups)
