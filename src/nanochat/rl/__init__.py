"""Reinforcement learning apart from Lightning: asking questions, rewarding answers, and weighting
each token in the loss."""
