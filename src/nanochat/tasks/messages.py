"""Any hub data set that already is conversations: a column of messages, each a role and a content."""

from typing import Any

from nanochat.tasks.hub import HubTask
from nanochat.tokenizer.conversations import BadConversation, check


class Messages(HubTask):
    """`column` holds the messages. A row that breaks the rules (turns that do not alternate, an empty message) raises
    BadConversation when it is asked for."""

    kind = "chat"

    def __init__(
        self,
        *,
        name: str,
        dataset: str,
        subset: str | None = None,
        split: str = "train",
        column: str = "messages",
        **common: Any,
    ):
        super().__init__(name=name, dataset=dataset, subset=subset, split=split, **common)
        self.columns = (column,)

    def conversation(self, i: int) -> dict[str, Any]:
        try:
            messages = [{"role": m["role"], "content": m["content"]} for m in self.row(i)[self.columns[0]]]
            conversation = {"messages": messages}
            check(conversation)
        except BadConversation as error:
            raise BadConversation(f"{self.where(i)}: {error}") from None
        except (TypeError, KeyError):
            raise BadConversation(
                f"{self.where(i)}: column {self.columns[0]} is not a list of messages, each a role and a content"
            ) from None
        return conversation

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "column": self.columns[0]}
