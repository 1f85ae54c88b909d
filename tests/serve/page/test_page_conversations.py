"""Handlers of the page, without a browser."""

import asyncio
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

gr = pytest.importorskip("gradio")
from serving import served  # noqa: E402
from tiny_networks import TOKENIZER  # noqa: E402

from nanochat.gpt import GPT, GPTConfig  # noqa: E402
from nanochat.inference.sampling import Sampling  # noqa: E402
from nanochat.serve.page.conversations import NotNow  # noqa: E402
from nanochat.serve.page.files import quoted  # noqa: E402
from nanochat.serve.page.mount import build_page  # noqa: E402
from nanochat.serve.page.page import Page, read_asked  # noqa: E402
from nanochat.serve.page.store import Conversation, Store  # noqa: E402
from nanochat.serve.service import Service  # noqa: E402

SERVICE = Service(
    [served("first", GPT.build(GPTConfig(256, TOKENIZER.vocab_size, 2, 2, 2, 32)).eval())]
)
TALK = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def test_views_arrive_in_the_order_in_which_they_were_chosen():
    """New after Clear has chosen its view, and before the page has it."""
    store = Store(None)
    talk = store.put(Conversation(list(TALK), owner="me"))
    shown = Page(SERVICE, store, Sampling(), private=True)
    with gr.Blocks():
        shown.build()
    opened, at = {"id": talk.id, "revision": talk.revision}, shown.view.index(shown.opened)
    window = SimpleNamespace(session_hash="s")

    async def press() -> None:
        clear, new = shown.clear(window, opened, "me"), shown.start_new(window, "me")
        assert (await anext(clear))[at] == {"id": talk.id, "revision": talk.revision + 1}
        opening = asyncio.create_task(anext(new))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not opening.done()  # Gradio has not asked for more, so it has not sent what it has
        assert await anext(clear) == shown.show({})  # which may be sent twice
        assert [view async for view in clear] == []
        assert (await opening)[at] == {"id": "", "revision": 0}
        assert [view async for view in new] == [shown.show({})]

    asyncio.run(press())
    assert store.get(talk.id).messages == []
    assert shown.current("s", {"id": "", "revision": 0}, "me").revision == 0


def test_nothing_is_done_to_a_conversation_that_is_being_left():
    store = Store(None)
    talk, other = (store.put(Conversation(list(TALK), owner="me")) for _ in range(2))
    shown = Page(SERVICE, store, Sampling(), private=True)
    opened = {"id": talk.id, "revision": talk.revision}
    # after a restart nobody knows what is shown
    assert shown.current("s", opened, "me").id == talk.id
    shown.shown["s"] = talk.id
    assert shown.current("s", opened, "me").id == talk.id
    for opening in (other.id, "a new one"):
        shown.shown["s"] = opening
        with pytest.raises(NotNow, match="another conversation is being opened"):
            shown.current("s", opened, "me")


def test_what_a_browser_may_ask_for_is_checked():
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read_asked(talk, {"question": 0, "branch": None}) == (0, None)
    for bad in (
        None,
        [],
        {},
        {"question": 1},
        {"question": True},
        {"question": 9},
        {"question": -2},
        {"question": 0, "branch": "1"},
    ):
        with pytest.raises(ValueError, match="load the page again"):
            read_asked(talk, bad)
    for bad in (
        [],
        {},
        {"name": "x", "bytes": 1, "text": {"path": "/"}},
        {"name": "x", "bytes": "1", "text": "a"},
    ):
        with pytest.raises(ValueError, match=r"choose one|can be attached"):
            quoted(bad)


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match=r"compare=true with 1 checkpoint\(s\); give 2 to 4"):
        build_page(SERVICE, Store(None), compare=True)


def test_settings_survive_the_way_through_the_page():
    sampling = Sampling(
        temperature=0.3,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        max_tokens=9,
        seed=5,
        tools=False,
    )
    page = Page(SERVICE, Store(None), replace(sampling, seed=0), private=True)
    for other in (sampling, Sampling(top_k=None, max_tokens=None)):
        settings = {"system": "s", "random_seed": False, "sampling": asdict(other)}
        assert page.settings_of(tuple(page.values_of(settings))) == settings


def test_a_conversation_beyond_the_characters_that_are_read_forgets_its_oldest_turns():
    async def answered() -> tuple[list[int], int]:
        talk = [{"role": role, "content": "x" * 30} for role in ("user", "assistant")] * 2000
        last = {"role": "user", "content": "?"}
        reply, forgotten = SERVICE.chat(None, [*talk, last], Sampling(max_tokens=9), forget=True)
        return reply.request.prompt, forgotten

    prompt, forgotten = asyncio.run(answered())
    assert len(prompt) <= 256 - 9 and forgotten == 2000 - 3  # a turn is 64 tokens here
