"""Any hub data set of conversations: a column of messages, each with a role and a content."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from nanochat.tasks.hub import HubTask, load_rows
from nanochat.tasks.shapes import METADATA, to_conversation
from nanochat.tokenizer.conversations import BadConversation, check


class Messages(HubTask):
    """`column` holds the messages.

    A row that breaks the rules (turns that do not alternate, tool calls) raises BadConversation
    when it is read. Other columns that might belong to the conversation are a ValueError until
    `ignore` names them.
    """

    kind = "chat"

    def __init__(
        self,
        *,
        name: str,
        dataset: str,
        subset: str | None = None,
        split: str = "train",
        column: str = "messages",
        ignore: Sequence[str] = (),
        **common: Any,
    ):
        super().__init__(name=name, dataset=dataset, subset=subset, split=split, **common)
        self.columns = (column,)
        self.ignore = tuple(ignore)

    @cached_property
    def rows(self) -> Any:
        return load_rows(
            self.dataset, self.subset, self.split, self.columns, METADATA | set(self.ignore)
        )

    def conversation(self, i: int) -> dict[str, Any]:
        try:
            messages = [
                {key: m[key] for key in m if m[key] is not None}
                for m in self.row(i)[self.columns[0]]
            ]
            found, _ = to_conversation(messages)
            check(found)
        except BadConversation as error:
            raise BadConversation(error.reason, self.where(i)) from None
        except TypeError:
            raise BadConversation(
                f"column {self.columns[0]} is not a list of messages", self.where(i)
            ) from None
        return found

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "column": self.columns[0]}
