"""The page in a real browser, headless. The engines, workers and the server are the real ones; only
which token comes next is written here."""

import json
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the page is tested in a browser: pip install playwright"
)
fastapi = pytest.importorskip("fastapi")
import torch  # noqa: E402
import uvicorn  # noqa: E402

from nanochat.gpt import GPT, GPTConfig  # noqa: E402
from nanochat.inference.engine import Engine  # noqa: E402
from nanochat.inference.sampling import Sampling  # noqa: E402
from nanochat.serve.page.mount import mount_page  # noqa: E402
from nanochat.serve.page.store import Conversation, Store  # noqa: E402
from nanochat.serve.service import ServedModel, Service  # noqa: E402
from nanochat.serve.worker import Worker  # noqa: E402
from nanochat.tokenizer.tokenizer import BPETokenizer  # noqa: E402

pytestmark = pytest.mark.slow
sync_api.expect.set_options(timeout=20_000)  # a machine may be slow; what is wrong stays wrong

TOKENIZER = BPETokenizer([])  # 256 bytes and the specials
SPECIAL = re.compile(r"(<\|\w+\|>)")
FENCE = "`" * 3
MARKUP = (
    '<script>window.broken = 1</script><img src=x onerror="window.broken = 2">'
    '<b onclick="window.broken = 3">bold</b>\n'
    '<iframe src="https://example.com/frame"></iframe> '
    "![picture](https://example.com/picture.png) [link](javascript:window.broken=4)\n"
    '<svg onload="window.broken = 5"></svg> '
    "<style>body { background: url(https://example.com/style.png) }</style> end of it"
)
ANSWERS = {
    "tool": "34+57=<|python_start|>34+57<|python_end|>91.",
    "evil tool": '<|python_start|><img src=x onerror="window.broken = 6">*a*<|python_end|>done',
    "code": f"This is it:\n\n{FENCE}python\ndef square(x):\n    return x * x\n{FENCE}\n\n"
    "and \\(x^2\\), and $$\\frac{1}{2}$$ for $5.",
    "markup": MARKUP,
    "long": " ".join(f"word{n}" for n in range(60)),
    "nothing": "",
    "lines": "\n\n".join(f"line {n}" for n in range(45)),
}


class ScriptedEngine(Engine):
    """Answers what `say` makes of the prompt, a byte per step and `pause` seconds between them."""

    name, pause, fails = "", 0.0, False

    def step(self):
        time.sleep(self.pause)
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return super().step()

    def _take(self, request, sample, text, token):
        written = self.say(TOKENIZER.decode(request.prompt), text.sampling)
        ids = []
        for piece in SPECIAL.split(written):
            ids += (
                [TOKENIZER.specials[piece]]
                if piece in TOKENIZER.specials
                else TOKENIZER.encode(piece)
            )
        ids.append(TOKENIZER.specials["<|assistant_end|>"])
        return super()._take(request, sample, text, token._replace(id=ids[sum(text.mask)]))

    def say(self, prompt: str, sampling: Sampling) -> str:
        if "<|user_start|>" not in prompt:
            return f" … and {self.name} goes on, seed {sampling.seed}."
        questions = re.findall(r"<\|user_start\|>(.*?)<\|user_end\|>", prompt, re.DOTALL)
        plain = (
            f"{self.name} on {questions[-1]!r}, question {len(questions)}, seed {sampling.seed}."
        )
        return ANSWERS.get(questions[-1], plain)


def model(name: str, phase: str, context: int = 4096) -> ServedModel:
    gpt = GPT.build(GPTConfig(context, TOKENIZER.vocab_size, 2, 2, 2, 32)).eval()
    engine = ScriptedEngine(gpt, TOKENIZER, pool_bytes=0)
    engine.name = name
    return ServedModel(name, None, phase, TOKENIZER, [Worker(engine, name)])


class Server:
    """The page of some models on a port of this machine."""

    def __init__(self, models, store_path, port: int = 0, **options):
        torch.manual_seed(0)
        self.service, self.store = Service(models), Store(store_path)
        self.service.start()
        app = fastapi.FastAPI()
        app.get("/health")(lambda: {"status": "ok"})
        mount_page(app, self.service, self.store, **options)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=0)
        )
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True
        )
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def engine(self, name: str) -> ScriptedEngine:
        return self.service.models[name].workers[0].engine

    def close(self):
        self.server.should_exit = True
        self.thread.join()
        self.service.close()
        self.store.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(
        [
            model("first", "sft"),
            model("second", "rl"),
            model("base", "base"),
            model("short", "sft", context=128),
        ],
        tmp_path_factory.mktemp("chat") / "c.sqlite",
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def watched(browser):
    """Contexts of which every request and every error is written down."""
    seen = {"requests": set(), "errors": []}

    def new(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        context.set_default_timeout(15_000)
        context.on("response", lambda response: seen["requests"].add(response.url))
        context.on(
            "requestfailed",
            lambda request: request.failure == "csp" or seen["requests"].add(request.url),
        )
        context.on("weberror", lambda error: seen["errors"].append(str(error.error)))
        return context

    return new, seen


@pytest.fixture(scope="module")
def browsers(watched):
    """Two that have the files of the page already, as after a first visit."""
    return [watched[0](), watched[0]()]


@pytest.fixture
def visit(watched, browsers):
    """Opens a window on a server, as a person who was never here; in the end, nothing was asked
    of any other address."""
    contexts, others, new, seen = [], [], *watched
    seen["requests"].clear()
    seen["errors"].clear()

    def visit(server, address="", *, context=None, elsewhere=False, **options):
        page = (context or browsers[elsewhere]).new_page()
        others.extend([page] if context else [])
        if options:
            contexts.append(new(**options))
            page = contexts[-1].new_page()
        elif context is None:
            page.goto(server.url + "health")
            page.evaluate("localStorage.clear()")
        page.goto(server.url + address)
        sync_api.expect(page.locator("#box textarea")).to_be_enabled(timeout=15_000)
        return page

    yield visit
    for page in (
        browsers[0].pages + browsers[1].pages + others
    ):  # each holds two of the six connections that a browser has to a server
        page.close()
    for context in contexts:
        context.close()
    assert {
        url
        for url in seen["requests"]
        if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", url)
    } == set()
    assert seen["errors"] == []


@pytest.fixture(scope="module")
def window(server, watched):
    page = watched[0]().new_page()
    page.goto(server.url)
    sync_api.expect(page.locator("#box textarea")).to_be_enabled(timeout=15_000)
    return page


@pytest.fixture
def page(window, visit):
    """A window that stays open from test to test, with a new conversation. `visit`
    checks what it asked for."""
    window.click("#new")
    wait_until(lambda: user(window) == [] and "conversation=" not in window.url)
    rest(window)
    return window


@pytest.fixture(autouse=True)
def _as_fast_as_it_can(request):
    yield
    if "server" in request.fixturenames:
        for served in request.getfixturevalue("server").service.models.values():
            served.workers[0].engine.pause = 0.0


# --- what a person does and sees ------------------------------------------------------------------


def send(page, text: str) -> None:
    page.fill("#box textarea", text)
    page.press("#box textarea", "Enter")


def wait_until(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def ask(page, text: str, answer: str) -> None:
    """When the answer before has ended, send, and wait for the end of what contains `answer`."""
    rest(page)
    send(page, text)
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text(answer)
    rest(page)


def rest(page) -> None:
    sync_api.expect(page.locator("#box").get_by_text("Send")).to_be_visible()


def bot(page) -> list[str]:
    return page.get_by_test_id("bot").all_inner_texts()


def user(page) -> list[str]:
    return [text.strip() for text in page.get_by_test_id("user").all_inner_texts()]


def button(page, name: str):
    return page.locator("#chat").get_by_role("button", name=name, exact=True)


def listed(page) -> list[str]:
    return [text.strip() for text in page.locator("#conversations label").all_inner_texts()]


def open_section(page, name: str) -> None:
    """If it is not open already."""
    inside = {"This conversation": "#export", "Settings": "#system"}[name]
    if not page.locator(inside).is_visible():
        page.locator("#sidebar").get_by_role("button", name=re.compile(f"^{name}")).click()


def test_an_answer_is_streamed_and_stop_ends_the_engine_and_keeps_what_was_written(server, page):
    server.engine("first").pause = 0.02
    send(page, "long")
    seen = set()
    while len(seen) < 6:
        seen.update(len(text) for text in bot(page))
        time.sleep(0.05)
    assert server.engine("first").live
    page.locator("#box").get_by_text("Stop").click()
    stopped = time.monotonic()
    wait_until(lambda: not server.engine("first").live)
    assert time.monotonic() - stopped < 1.0  # a machine under load; it is two steps of 0.01 s
    rest(page)
    text = bot(page)[-1].strip()
    assert "word0 word1" in text and "word59" not in text
    assert "stopped" in page.inner_text("#numbers") and "tokens/s" in page.inner_text("#numbers")
    server.engine("first").pause = 0.0
    ask(page, "hello", "first on 'hello', question 2")  # an immediate resend works
    assert bot(page)[0].strip() == text


def test_a_call_of_the_calculator_is_one_item_that_opens(server, page):
    ask(page, "tool", "91.")
    item = page.get_by_role("button", name="calculator: 34+57 → 91")
    sync_api.expect(page.locator("#chat code")).to_have_count(0)  # it closes when the answer ends
    assert item.count() == 1
    item.press("Enter")  # by keyboard
    sync_api.expect(page.locator("#chat code")).to_contain_text("34+57")
    assert bot(page)[0].strip() == "34+57=" and bot(page)[-1].strip() == "91."
    id = page.url.split("conversation=")[1]
    assert [part["type"] for part in server.store.get(id).messages[1]["content"]] == [
        "text",
        "python",
        "python_output",
        "text",
    ]


def test_what_the_model_writes_cannot_run_or_fetch_anything(server, page):
    ask(page, "markup", "end of it")
    ask(page, "evil tool", "done")
    page.get_by_role("button", name="calculator:").click()
    page.get_by_text("bold").first.click()
    if (link := page.locator("#chat a", has_text="link")).count():
        link.first.click()
    send(page, MARKUP)  # nor what a person pastes
    rest(page)
    page.reload()
    sync_api.expect(page.get_by_test_id("bot").last).to_be_visible()
    time.sleep(0.5)
    assert page.evaluate("window.broken") is None
    assert (
        page.locator(
            "#chat script, #chat iframe, #chat [onerror], #chat [onclick], #chat [onload]"
        ).count()
        == 0
    )
    # and `visit` finds no request to example.com that the policy did not stop in the browser


def test_code_and_formulas_are_rendered(server, page):
    ask(page, "code", "This is it")
    assert (
        page.locator(
            "#chat pre code .token.keyword, #chat pre code .hljs-keyword"
        ).first.inner_text()
        == "def"
    )
    sync_api.expect(page.locator("#chat .katex")).to_have_count(2)
    assert page.locator("#chat .katex-display").count() == 1
    assert "for $5." in bot(page)[-1]


def test_a_message_is_edited_and_answered_anew_and_the_old_way_is_kept(server, page):
    ask(page, "one", "question 1")
    ask(page, "two", "question 2")
    ask(page, "three", "question 3")
    button(page, "Edit").nth(1).click()
    page.locator("#chat textarea").fill("two, better")
    button(page, "Submit").click()
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("'two, better', question 2")
    rest(page)
    assert user(page) == ["one", "two, better"]
    assert listed(page)[:2] == ["one", "Before an edit: one"]
    page.get_by_text("Before an edit: one").first.click()
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("'three', question 3")


def test_an_answer_is_made_again_and_taken_back_and_all_is_cleared(server, page):
    ask(page, "one", "question 1")
    ask(page, "two", "question 2")
    first = bot(page)[-1]
    button(page, "Retry").last.click()
    wait_until(lambda: bot(page)[-1] != first and "question 2" in bot(page)[-1])  # another seed
    rest(page)
    assert user(page) == ["one", "two"]
    button(page, "Undo").click()
    sync_api.expect(page.locator("#box textarea")).to_have_value("two")
    wait_until(lambda: user(page) == ["one"])
    button(page, "Clear").click()
    wait_until(lambda: user(page) == [] and bot(page) == [])
    wait_until(lambda: server.store.get(page.url.split("conversation=")[1]).messages == [])


def test_new_right_after_clear_is_a_new_conversation(server, page):
    for n in range(4):
        ask(page, f"one {n}", "question 1")
        old = page.url
        buttons = [button(page, "Clear").element_handle(), page.locator("#new").element_handle()]
        page.evaluate("(buttons) => buttons.forEach((each) => each.click())", buttons)
        wait_until(lambda: user(page) == [] and "conversation=" not in page.url)
        ask(page, f"two {n}", f"'two {n}', question 1")
        assert page.url != old and user(page) == [f"two {n}"]
        page.click("#new")
        wait_until(lambda: user(page) == [] and "conversation=" not in page.url)


def test_a_seed_that_is_set_gives_the_same_answer_and_settings_reach_the_engine(server, visit):
    page = visit(server)
    open_section(page, "Settings")
    page.uncheck("#random_seed input")
    page.fill("#seed input", "77")
    page.fill("#system textarea", "Be kind.")
    page.fill("#max_tokens input", "5")
    ask(page, "one", "first")
    assert bot(page)[-1].strip() == "first" and "cut off" in page.inner_text("#numbers")
    c = server.store.get(server.store.entries()[0].id)
    assert c.settings["system"] == "Be kind." and c.messages[1]["made"]["sampling"]["seed"] == 77
    page.fill("#max_tokens input", "")
    button(page, "Retry").last.click()
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text(
        "'Be kind.\\n\\none', question 1, seed 77"
    )
    rest(page)
    page.reload()
    sync_api.expect(page.get_by_test_id("bot").last).to_be_visible()
    open_section(page, "Settings")
    assert (
        page.input_value("#system textarea") == "Be kind."
        and page.input_value("#seed input") == "77"
    )


def test_conversations_are_found_again_after_a_reload_and_after_a_restart_of_the_server(
    visit, tmp_path
):
    server = Server([model("first", "sft")], tmp_path / "c.sqlite")
    page = visit(server)
    ask(page, "one", "question 1")
    page.click("#new")
    wait_until(lambda: user(page) == [])
    ask(page, "two", "question 1")
    assert listed(page) == ["two", "one"]
    address = page.url
    page.reload()
    wait_until(lambda: user(page) == ["two"])
    server.engine("first").pause = 0.02
    send(page, "long")
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("word1")
    server.close()  # in the middle of an answer
    server = Server([model("first", "sft")], tmp_path / "c.sqlite", port=server.port)
    page.reload()
    wait_until(lambda: user(page) == ["two", "long"])
    assert "word1" in bot(page)[-1] and "word59" not in bot(page)[-1] and page.url == address
    page.get_by_text("one", exact=True).click()
    wait_until(lambda: user(page) == ["one"])
    other = visit(server, elsewhere=True)
    assert listed(other) == []
    server.close()
    server = Server([model("first", "sft")], tmp_path / "c.sqlite", port=server.port, private=False)
    ask(page, "more", "question 2")  # in a window that stayed open
    other.reload()
    wait_until(lambda: listed(other) == ["one", "two"])
    server.close()


def test_conversations_are_renamed_and_deleted(server, page):
    ask(page, "one", "question 1")
    open_section(page, "This conversation")
    page.fill("#title input, #title textarea", "My name")
    page.press("#title input, #title textarea", "Enter")
    wait_until(lambda: listed(page)[0] == "My name")
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#delete")
    time.sleep(0.3)
    assert listed(page)[0] == "My name" and user(page) == ["one"]
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#delete")
    wait_until(lambda: "My name" not in listed(page) and user(page) == [])
    assert "conversation=" not in page.url


def test_two_windows_of_one_conversation_do_not_overwrite_each_other(server, visit):
    page = visit(server)
    ask(page, "one", "question 1")
    other = visit(server, page.url.removeprefix(server.url), context=page.context)
    wait_until(lambda: user(other) == ["one"])
    ask(page, "two", "question 2")
    send(other, "mine")
    other.get_by_text("went on elsewhere").wait_for()
    wait_until(lambda: user(other) == ["one", "two"])
    assert other.input_value("#box textarea") == "mine"
    ask(other, "mine", "question 3")
    c = server.store.get(re.search("conversation=([^&]*)", page.url)[1])
    assert [m["content"] for m in c.messages if m["role"] == "user"] == ["one", "two", "mine"]


def test_another_conversation_can_be_looked_at_while_one_is_written_and_answers_never_mix(
    server, visit
):
    server.engine("first").pause = 0.05
    page, stranger = visit(server), visit(server, elsewhere=True)
    send(page, "long")
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("word3")
    page.click("#new")
    wait_until(lambda: user(page) == [])
    ask(page, "two", "'two', question 1")
    ask(stranger, "three", "'three', question 1")
    assert user(page) == ["two"] and listed(stranger) == ["three"]
    page.get_by_text("long", exact=True).click()
    wait_until(lambda: user(page) == ["long"])
    length = len(bot(page)[-1])
    wait_until(lambda: len(bot(page)[-1]) > length + 20)  # it goes on
    server.engine("first").pause = 0.0
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("word59")
    rest(page)
    mine = {entry.title: server.store.get(entry.id) for entry in reversed(server.store.entries())}
    assert mine["long"].messages[1]["content"] == [{"type": "text", "text": ANSWERS["long"]}]
    assert mine["long"].owner == mine["two"].owner != mine["three"].owner


def test_a_closed_window_ends_the_answer_and_keeps_it_as_far_as_it_came(server, visit):
    server.engine("first").pause = 0.02
    page = visit(server)
    send(page, "long")
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("word1")
    id = re.search("conversation=([^&]*)", page.url)[1]
    page.close()
    wait_until(lambda: not server.engine("first").live)
    wait_until(lambda: server.store.get(id).messages[-1]["role"] == "assistant")
    (part,) = server.store.get(id).messages[1]["content"]
    assert ANSWERS["long"].startswith(part["text"]) and len(part["text"]) > 5


def test_errors_are_a_line_and_lose_nothing_that_was_typed(server, page):
    server.service.max_queue, before = -99, server.service.max_queue
    send(page, "one")
    page.get_by_text("answers are waiting already").wait_for()
    server.service.max_queue = before
    assert page.input_value("#box textarea") == "one" and user(page) == []
    server.engine("first").fails = True
    send(page, "one")
    page.get_by_text("out of memory").wait_for()
    rest(page)
    assert user(page) == ["one"]
    button(page, "Retry").last.click()
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("question 1")
    ask(page, "nothing", "…")
    ask(page, "two", "question 3")
    c = server.store.get(page.url.split("conversation=")[1])
    server.store.put(replace(c, messages=c.messages[:-1]))  # as a killed server leaves it
    page.reload()
    wait_until(lambda: user(page)[-1:] == ["two"] and bot(page)[-1].strip() == "…")
    button(page, "Retry").last.click()
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("question 3")
    rest(page)


def test_the_model_is_changed_in_the_middle_and_the_oldest_turns_are_forgotten(server, visit):
    page = visit(server)
    for text in ("one " * 8, "two " * 8):
        ask(page, text.strip(), f"{text.strip()}', question")
    pick(page, "second (rl)")
    ask(page, "three", "second on 'three', question 3")
    assert page.inner_text("#numbers").startswith("second")
    pick(page, "short (sft)")
    send(page, "four")
    sync_api.expect(page.locator("#numbers")).to_contain_text("oldest turns were forgotten")
    rest(page)
    page.reload()
    wait_until(lambda: user(page)[-1:] == ["four"])
    assert page.input_value("#model input") == "short (sft)"
    send(page, "long " * 50)
    page.get_by_text("leaves no room").wait_for()
    assert page.input_value("#box textarea").startswith("long long")
    wait_until(lambda: user(page)[-1] == "four")


def pick(page, name: str) -> None:
    page.click("#model input")
    page.get_by_role("option", name=name).click()


def test_a_base_checkpoint_continues_a_text(server, visit):
    page = visit(server)
    pick(page, "base (base)")
    page.locator("#passage textarea").wait_for()
    assert not page.locator("#box").is_visible()
    page.fill("#passage textarea", "Once upon a time")
    page.press("#passage textarea", "Shift+Enter")
    wait_until(
        lambda: re.fullmatch(
            r"Once upon a time … and base goes on, seed \d+\.",
            page.input_value("#passage textarea"),
        )
    )
    sync_api.expect(page.locator("#text_numbers")).to_contain_text("answer")
    sync_api.expect(page.locator("#halt")).to_be_disabled()
    page.click("#continue")
    wait_until(lambda: page.input_value("#passage textarea").count("goes on") == 2)
    sync_api.expect(page.locator("#halt")).to_be_disabled()
    page.click("#take_back")
    wait_until(lambda: page.input_value("#passage textarea").count("goes on") == 1)
    page.click("#take_back")
    wait_until(lambda: page.input_value("#passage textarea") == "Once upon a time")
    server.engine("base").pause = 0.1
    page.click("#continue")
    page.click("#halt")
    wait_until(lambda: not server.engine("base").live)
    sync_api.expect(page.locator("#halt")).to_be_disabled()
    assert "goes on" not in page.input_value("#passage textarea")


def test_export_and_import(server, page, visit, tmp_path):
    ask(page, "tool", "91.")
    open_section(page, "This conversation")
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "c.json")
    exported = json.loads((tmp_path / "c.json").read_text())["conversations"][0]
    assert exported["messages"][1]["content"][1] == {"type": "python", "text": "34+57"}
    other = visit(server, elsewhere=True)
    with other.expect_file_chooser() as chooser:
        other.click("#import")
    chooser.value.set_files(tmp_path / "c.json")
    sync_api.expect(other.get_by_test_id("bot").last).to_contain_text("91.")
    assert listed(other) == ["tool"]
    with other.expect_download() as download:
        other.click("#export_all")
    download.value.save_as(tmp_path / "all.json")
    again = json.loads((tmp_path / "all.json").read_text())["conversations"]
    assert [replace_times(c) for c in again] == [replace_times(exported)]
    (tmp_path / "bad.json").write_text("[1]")
    with other.expect_file_chooser() as chooser:
        other.click("#import")
    chooser.value.set_files(tmp_path / "bad.json")
    other.get_by_text("it has no list of messages").wait_for()
    assert listed(other) == ["tool"]


def replace_times(c: dict) -> dict:
    return {key: value for key, value in c.items() if key not in ("created", "updated")}


def test_it_is_used_on_a_phone(server, visit):
    page = visit(server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.locator("#box textarea").tap()
    page.fill("#box textarea", "code")
    page.locator("#box").get_by_text("Send").tap()
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("This is it")
    rest(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.documentElement.scrollHeight") <= 844
    box = page.locator("#box").bounding_box()
    assert box["y"] + box["height"] <= 844 and box["x"] + box["width"] <= 390
    page.get_by_role("button", name="Toggle Sidebar").tap()
    page.locator("#new").tap()
    wait_until(lambda: user(page) == [])
    page.locator("#box textarea").tap()  # the list went away


def test_everything_can_be_done_by_keyboard(server, visit):
    server.engine("first").pause = 0.02
    page = visit(server)
    sync_api.expect(page.locator("#box textarea")).to_be_focused()
    page.keyboard.type("long")
    page.keyboard.press("Shift+Enter")  # a line, not the end
    page.keyboard.press("Backspace")
    page.keyboard.press("Enter")
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("word1")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText").strip() == "Stop"
    page.keyboard.press("Enter")
    wait_until(lambda: not server.engine("first").live)
    rest(page)
    names = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        names.add(
            page.evaluate(
                "(e => e.ariaLabel || e.innerText || e.id || e.type)(document.activeElement)"
            ).strip()
        )
    assert {"Edit", "Retry", "Undo", "Clear", "New conversation", "radio", "Export all"} <= names


# --- long conversations ---------------------------------------------------------------------------

PICTURE = """() => {
    const scrolls = [...document.querySelectorAll("main *, main")].filter(
        (e) => e.tagName !== "TEXTAREA" && !e.closest("#sidebar") && e.clientHeight
            && e.scrollHeight > e.clientHeight + 1
            && /auto|scroll/.test(getComputedStyle(e).overflowY));
    const box = document.querySelector("#box").getBoundingClientRect();
    const whole = document.documentElement, wraps = [...document.querySelectorAll(".bubble-wrap")];
    const tools = document.querySelector("#chat .top-panel")?.getBoundingClientRect();
    const chat = document.querySelector("#chat .bubble-wrap");
    return {
        box: [box.left >= 0, box.top >= 0, box.right <= window.innerWidth,
            box.bottom <= window.innerHeight, box.height >= 30],
        whole: [whole.scrollWidth - window.innerWidth, whole.scrollHeight - window.innerHeight],
        scrolls: scrolls.map((e) => e.className.split(" ")[0]),
        below: wraps.map((e) => e.scrollHeight - e.clientHeight - Math.round(e.scrollTop)),
        covered: tools ? chat.getBoundingClientRect().top < tools.bottom : false,
    };
}"""


def in_order(page, columns: int = 1) -> None:
    """The box is in the window, nothing but the conversations scrolls (and their list in the
    sidebar, once it is long), and they are at their end."""
    good = {
        "box": [True] * 5,
        "whole": [0, 0],
        "scrolls": ["bubble-wrap"] * columns,
        "below": [0] * columns,
    }

    def found():
        return {key: value for key, value in page.evaluate(PICTURE).items() if key in good}

    with suppress(AssertionError):
        wait_until(lambda: found() == good)
    assert found() == good


def twelve_turns() -> list[dict]:
    calls = [
        {"type": "text", "text": "34+57="},
        {"type": "python", "text": "34+57"},
        {"type": "python_output", "text": "91"},
    ]
    code = f"{ANSWERS['code']}\n\n{FENCE}\n{'x' * 500}\n{FENCE}\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    answers = ["\n\n".join([ANSWERS["long"]] * 3), calls, code, "y" * 500]
    made = {
        "model": "first",
        "sampling": {"seed": 7},
        "prompt_tokens": 812,
        "tokens": 120,
        "tokens_per_second": 88.2,
        "context": 4096,
        "forgotten_turns": 0,
        "finish_reason": "stop",
    }
    return [
        message
        for n in range(12)
        for message in (
            {"role": "user", "content": f"Question {n}: " + "tell me more " * 20},
            {"role": "assistant", "content": answers[n % 4], "made": made},
        )
    ]


@pytest.fixture(scope="module")
def long_talk(server, window):
    """The address of a long conversation of the window that stays open."""
    window.click("#new")
    wait_until(lambda: user(window) == [])
    ask(window, "whose", "question 1")
    owner = server.store.get(window.url.split("conversation=")[1]).owner
    stored = server.store.put(Conversation(twelve_turns(), owner=owner, model="first"))
    return f"{server.url}?conversation={stored.id}"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1920, 1080), (390, 844), (820, 1180)])
def test_a_long_conversation_scrolls_in_its_own_area_and_the_box_stays(
    visit, server, page, long_talk, width, height
):
    page = visit(server, long_talk.removeprefix(server.url), context=page.context)
    page.set_viewport_size({"width": width, "height": height})
    wait_until(lambda: len(user(page)) == 12)
    in_order(page)
    assert width > 1400 or not page.evaluate(PICTURE)["covered"]
    page.set_viewport_size({"width": width, "height": 500})  # a keyboard comes up
    in_order(page)
    page.locator("#box textarea").fill("line\n" * 20)
    in_order(page)


BELOW = """[...document.querySelectorAll(".bubble-wrap")].map(
    (e) => e.scrollHeight - e.clientHeight - Math.round(e.scrollTop))"""
UP = "document.querySelectorAll('.bubble-wrap').forEach((e) => e.scrollTo(0, 0))"


def test_who_sends_or_retries_from_scrolled_up_sees_the_newest_text(visit, server, page, long_talk):
    page = visit(server, long_talk.removeprefix(server.url), context=page.context)
    wait_until(lambda: len(user(page)) == 12 and page.evaluate(BELOW) == [0])
    page.evaluate(UP)
    wait_until(lambda: page.evaluate(BELOW)[0] > 1000)
    send(page, "hello")
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("first on 'hello'")
    wait_until(lambda: page.evaluate(BELOW) == [0])
    rest(page)
    page.evaluate(UP)
    wait_until(lambda: page.evaluate(BELOW)[0] > 1000)
    branch(page, "Retry", 12).click()
    sync_api.expect(page.locator("#chat .branches").nth(12)).to_contain_text("2/2")
    wait_until(lambda: page.evaluate(BELOW) == [0])


def test_the_view_follows_an_answer_and_stays_where_it_is_scrolled_to(server, page):
    page.set_viewport_size({"width": 1280, "height": 500})
    area = page.locator("#chat .bubble-wrap")
    server.engine("first").pause = 0.02
    send(page, "lines")
    for line in (14, 18, 22):
        wait_until(lambda line=line: f"line {line}\n" in "".join(bot(page)))
        wait_until(
            lambda: page.evaluate(BELOW)[0] <= 100
        )  # as near as counts as the end, while the text grows
    assert server.engine("first").live and area.evaluate("(e) => e.scrollTop") > 200
    area.hover()
    page.mouse.wheel(0, -400)
    wait_until(lambda: page.evaluate(BELOW)[0] > 300)
    top = area.evaluate("(e) => e.scrollTop")
    wait_until(lambda: "line 32\n" in bot(page)[-1])
    assert server.engine("first").live and area.evaluate("(e) => e.scrollTop") == top
    server.engine("first").pause = 0.0
    rest(page)
    assert "line 44" in bot(page)[-1] and area.evaluate("(e) => e.scrollTop") == top
    page.set_viewport_size({"width": 1280, "height": 800})


# --- branches, search, files ----------------------------------------------------------------------


def branch(page, name: str, answer: int):
    return page.locator("#chat .branches").nth(answer).get_by_role("button", name=name, exact=True)


def test_any_answer_is_made_again_and_the_earlier_ones_are_kept_with_what_followed(server, page):
    for text in ("one", "two", "three"):
        ask(page, text, f"'{text}', question")
    old = bot(page)
    branch(page, "Retry", 1).click()
    wait_until(
        lambda: (
            user(page) == ["one", "two"]
            and bot(page)[1:2] not in ([], [old[1]])
            and "seed" in bot(page)[1]
        )
    )
    rest(page)
    sync_api.expect(page.locator("#chat .branches").nth(1)).to_contain_text("2/2")
    ask(page, "other", "'other', question 3")
    new = bot(page)
    branch(page, "Earlier answer", 1).click()
    wait_until(lambda: bot(page) == old and user(page) == ["one", "two", "three"])
    assert (
        branch(page, "Earlier answer", 1).is_disabled()
        and page.locator("#chat .branches").nth(0).inner_text() == "⟳"
    )
    page.reload()
    wait_until(lambda: bot(page) == old)
    branch(page, "Later answer", 1).click()
    wait_until(lambda: bot(page) == new and user(page) == ["one", "two", "other"])
    branch(page, "Retry", 0).click()
    wait_until(lambda: user(page) == ["one"] and bot(page) and bot(page)[0] != old[0])
    rest(page)
    branch(page, "Earlier answer", 0).click()
    wait_until(lambda: bot(page) == new)  # the branches of the branch are there too
    sync_api.expect(page.locator("#chat .branches").nth(1)).to_contain_text("2/2")


def test_an_edited_first_message_renames_its_conversation_unless_a_title_was_typed(server, page):
    ask(page, "one", "question 1")
    for text in ("better", "best"):
        button(page, "Edit").first.click()
        page.locator("#chat textarea").fill(text)
        button(page, "Submit").click()
        sync_api.expect(page.get_by_test_id("bot").last).to_contain_text(f"'{text}', question 1")
        rest(page)
        assert listed(page)[0] == ("better" if text == "better" else "My name")
        open_section(page, "This conversation")
        page.fill("#title input, #title textarea", "My name")
        page.press("#title input, #title textarea", "Enter")
        wait_until(lambda: listed(page)[0] == "My name")


def test_conversations_are_searched_in_titles_and_contents(server, visit):
    page = visit(server)
    for text in ("the first about whales", "tool", "Größe"):
        ask(page, text, "")
        page.click("#new")
        wait_until(lambda: user(page) == [])
        rest(page)
    for typed, found in [
        ("whales ABOUT", ["the first about whales"]),
        ("34+57", ["tool"]),
        ("GRÖSSE", ["Größe"]),
    ]:
        page.fill("#search input, #search textarea", typed)
        wait_until(lambda found=found: listed(page) == found)
    page.get_by_text("Größe", exact=True).first.click()
    wait_until(lambda: user(page) == ["Größe"])
    ask(page, "more", "question 2")
    assert listed(page) == ["Größe"]  # the list stays as it was searched
    page.click("#new")
    wait_until(lambda: user(page) == [])
    page.fill(
        "#search input, #search textarea", "role"
    )  # a word of the form, not of a conversation
    wait_until(lambda: listed(page) == [])
    page.fill("#search input, #search textarea", "")
    wait_until(lambda: listed(page) == ["Größe", "tool", "the first about whales"])


def test_a_text_file_is_attached_and_others_are_refused(server, page, tmp_path):
    def attach(name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with page.expect_file_chooser() as chooser:
            page.click("#attach")
        chooser.value.set_files(tmp_path / name)

    typed = page.locator("#box textarea")
    typed.fill("What is this?")
    uploads = []
    page.on("request", lambda request: "upload" in request.url and uploads.append(request.url))
    attach("bad.txt", "Größe".encode("latin-1"))
    page.get_by_text("bad.txt is not text in UTF-8").wait_for()
    attach("zero.bin", b"a\0b")
    page.get_by_text("zero.bin is not text in UTF-8").wait_for()
    attach("long.txt", b"a" * 50_001)
    page.get_by_text("long.txt has 50,001 characters; at most 50,000").wait_for()
    attach("huge.txt", b"a" * 300_000)
    page.get_by_text("huge.txt has 300,000 bytes; at most 50,000").wait_for()
    attach("empty.txt", b"\n")
    page.get_by_text("empty.txt is empty").wait_for()
    assert typed.input_value() == "What is this?"
    attach("<b>notes.md", f"# Größe\n{FENCE}\ncode\n{FENCE}\n".encode())
    sync_api.expect(typed).to_have_value(
        f"What is this?\n\n<b>notes.md:\n{FENCE}`\n# Größe\n{FENCE}\ncode\n{FENCE}\n{FENCE}`\n"
    )
    page.press("#box textarea", "Enter")
    sync_api.expect(page.get_by_test_id("bot").last).to_contain_text("question 1")
    rest(page)
    (c,) = [server.store.get(page.url.split("conversation=")[1])]
    assert c.messages[0]["content"].startswith(
        "What is this?\n\n<b>notes.md:"
    ) and c.title.startswith("What is this?")
    sync_api.expect(page.locator("#chat .user-row pre")).to_contain_text("# Größe")
    assert uploads == []  # the server was never sent a file


def test_names_in_an_import_are_plain_text_everywhere(server, page, tmp_path):
    name = (
        "[m](https://example.com/m) <a href='https://example.com/a'>a</a> "
        "https://example.com/u www.example.com a@example.com \\(x\\)"
    )
    messages = twelve_turns()[:2]
    messages[1]["made"] |= {"model": name, "sampling": {"seed": name}}
    messages[1]["content"] = [
        {"type": "python", "text": name},
        {"type": "python_output", "text": "1"},
    ]
    (tmp_path / "c.json").write_text(
        json.dumps([{"title": name, "model": name, "messages": messages}])
    )
    with page.expect_file_chooser() as chooser:
        page.click("#import")
    chooser.value.set_files(tmp_path / "c.json")
    page.get_by_text("it was held with [m](https://example.com/m) <a").wait_for()
    sync_api.expect(page.locator("#numbers")).to_contain_text(f"{name} · 88 tokens/s")
    sync_api.expect(page.locator("#numbers")).to_contain_text(f"seed {name}")
    wait_until(lambda: listed(page)[0].startswith("[m](https://example.com/m) <a href="))
    sync_api.expect(page.locator("#chat .thought-group").first).to_contain_text(
        "calculator: [m](https://example.com/m)"
    )
    assert page.locator("a[href*=example], .katex").count() == 0


# --- side by side ---------------------------------------------------------------------------------


def test_models_are_compared_with_the_same_question_and_seed(visit):
    models = [model("base", "base"), model("sft", "sft"), model("rl", "rl")]
    server = Server(models, None, compare=True)
    page = visit(server)
    columns, bodies = page.locator(".side"), []
    page.on("request", lambda r: "/queue/join" in r.url and bodies.append(r.post_data))
    send(page, "tool")
    wait_until(lambda: all("91." in columns.nth(n).inner_text() for n in (1, 2)))
    rest(page)
    assert columns.count() == 3
    assert all("seed" in columns.nth(n).inner_text() for n in range(3))
    send(page, "hello")
    wait_until(lambda: "'hello', question 2" in columns.nth(2).inner_text())
    rest(page)
    seeds = [re.findall(r"seed (\d+)", columns.nth(n).inner_text()) for n in range(3)]
    assert len({each[-1] for each in seeds}) == 1
    assert f"base goes on, seed {seeds[0][-1]}" in columns.nth(0).inner_text()
    assert page.get_by_role("button", name="calculator: 34+57 → 91").count() == 2
    for each in server.service.models:
        server.engine(each).pause = 0.02
    send(page, "long")
    wait_until(lambda: all("word1" in columns.nth(n).inner_text() for n in (1, 2)))
    page.locator("#box").get_by_text("Stop").click()
    wait_until(lambda: not any(server.engine(each).live for each in server.service.models))
    rest(page)
    for _ in range(4):
        asked = page.get_by_test_id("user").count()
        send(page, "code")
        wait_until(lambda asked=asked: page.get_by_test_id("user").count() == asked + 3)
        rest(page)
    bodies = [len(body) for body in bodies if '"code"' in body]
    # equal but for the digits of a seed: the conversation is not sent back
    assert len(bodies) == 4 and max(bodies) - min(bodies) <= 20
    for width, height in [(390, 844), (390, 500), (820, 1180), (1920, 1080), (1280, 800)]:
        page.set_viewport_size({"width": width, "height": height})
        in_order(page, 3)
    page.set_viewport_size({"width": 1280, "height": 500})
    page.evaluate(UP)
    wait_until(lambda: min(page.evaluate(BELOW)) > 100)
    for each in server.service.models:
        server.engine(each).pause = 0.02
    send(page, "long")
    wait_until(lambda: all("word1" in columns.nth(n).inner_text() for n in (1, 2)))
    wait_until(lambda: page.evaluate(BELOW) == [0] * 3)
    page.click("#sidebar button.toggle-button, [aria-label='Toggle Sidebar']")
    page.click("#new")
    wait_until(lambda: page.get_by_test_id("bot").count() == 0)  # in the middle of an answer
    wait_until(lambda: not any(server.engine(each).live for each in server.service.models))
    rest(page)
    assert page.get_by_test_id("bot").count() == 0
    server.close()


def test_routes_that_were_there_before_stay_and_the_page_says_what_may_be_loaded(server):
    import urllib.request

    assert json.load(urllib.request.urlopen(server.url + "health")) == {"status": "ok"}
    answer = urllib.request.urlopen(server.url)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert not re.findall(r"""(?:src|href)="https?://""", answer.read().decode())
