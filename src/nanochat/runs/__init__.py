"""A training run: its folder and record, its processes, and how it is put together from a
config."""
