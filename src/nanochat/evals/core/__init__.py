"""CORE, the mean of 22 centred accuracies (Li et al. 2024, "DCLM", arXiv:2406.11794; facts sheet
6.2)."""
