"""Tasks: conversations and their scores, one file per task. A task works on text only, without
tokenizer and model."""

from nanochat.tasks.task import Task

__all__ = ["Task"]
