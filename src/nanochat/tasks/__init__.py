"""Conversations and scores, one file per task. A task knows text only: no tokenizer is used, no model is seen."""

from nanochat.tasks.task import Task

__all__ = ["Task"]
