"""Reinforcement learning apart from Lightning: what is asked, what it earns, and what each token of it weighs in the loss."""
