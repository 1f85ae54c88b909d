import os
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MIRROR = os.environ.get("NANOCHAT_HUB_DIR", "")  # read before the fixture below hides it


@pytest.fixture(autouse=True)
def _own_base(tmp_path, monkeypatch):
    """Nothing is written outside the test's folder, and no mirror is used unless a test asks for
    it."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a connection fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"the network was asked: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def _mirror_base(tmp_path_factory):
    return tmp_path_factory.mktemp("mirror_base")


@pytest.fixture
def mirror(monkeypatch, no_network, _mirror_base) -> str:
    """The local mirror of real data, or a skip. What `datasets` makes of it is kept for the other
    tests."""
    if not MIRROR:
        pytest.skip("needs a local mirror of the data sets, named by NANOCHAT_HUB_DIR")
    monkeypatch.setenv("NANOCHAT_HUB_DIR", MIRROR)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(_mirror_base))
    return MIRROR


@pytest.fixture
def small_mirror(tmp_path, monkeypatch, no_network):
    """put(dataset, rows, split=…, subset=…) lays rows of our own into a mirror."""
    declared: dict[str, dict[str, list[str]]] = {}

    def put(dataset: str, rows: list[dict], split: str = "train", subset: str = "default") -> None:
        folder = tmp_path / "hub" / dataset
        (folder / subset).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / subset / f"{split}.parquet")
        declared.setdefault(dataset, {}).setdefault(subset, []).append(split)
        lines = ["---", "configs:"]
        for name, splits in declared[dataset].items():
            lines += [f"- config_name: {name}", "  data_files:"]
            for part in splits:
                lines += [f"  - split: {part}", f"    path: {name}/{part}.parquet"]
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]))

    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path / "hub"))
    return put


def broken_rules(conversation: dict) -> list[str]:
    """What of the rules of a conversation this one breaks, written down apart from the code it
    tests."""
    found = []
    messages = list(conversation["messages"])
    if messages and messages[0]["role"] == "system":
        found += (
            []
            if isinstance(messages.pop(0)["content"], str)
            else ["the system message is not text"]
        )
    if [m["role"] for m in messages] != ["user", "assistant"] * (
        len(messages) // 2
    ) or not messages:
        found.append("user and assistant do not alternate to the assistant's last word")
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            if not content.strip():
                found.append("an empty message")
        elif message["role"] != "assistant" or not isinstance(content, list) or not content:
            found.append("parts that are not the assistant's")
        else:
            for part in content:
                if set(part) != {"type", "text"} or part["type"] not in (
                    "text",
                    "python",
                    "python_output",
                ):
                    found.append(f"a part {part}")
                if not isinstance(part["text"], str):
                    found.append("a part without text")
            kinds = [part["type"] for part in content]
            for at, kind in enumerate(kinds):
                if kind == "python_output" and kinds[at - 1 : at] != ["python"]:
                    found.append("a result without its call")
                if kind == "python" and kinds[at + 1 : at + 2] != ["python_output"]:
                    found.append("a call without its result")
    return found


@pytest.fixture
def rules():
    return broken_rules
