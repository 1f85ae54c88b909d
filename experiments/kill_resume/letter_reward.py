"""What kind rl of run.py is rewarded for: a small untrained model can earn it from the first step
on."""


def letters_e(rollouts, task):
    """The share of the letter e in each answer."""
    return [rollout.text.count("e") / max(len(rollout.text), 1) for rollout in rollouts]
