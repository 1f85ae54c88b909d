"""The page as a part of an application.

Nothing is fetched from elsewhere: fonts are the system's, and a Content-Security-Policy
(headers.py) stops the browser from loading what a model may write, such as an image on another
server. A conversation belongs to the browser that made it (`private`), by an id in its local
storage; anyone who can read the store's file can read all of them.
"""

import hmac
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
from starlette.middleware import Middleware

from nanochat.inference.sampling import Sampling
from nanochat.serve.page.compare import Compare
from nanochat.serve.page.headers import StaysHere
from nanochat.serve.page.page import Page
from nanochat.serve.page.store import Store
from nanochat.serve.page.visitors import Sealed, only_for_visitors
from nanochat.serve.service import WEB_CHAT, Service

MOST_COLUMNS = 4  # guess: more are too narrow to read
UPLOAD_BYTES = 2**25  # guess: of an import
# guess: between two checks for an event; gradio's 0.001 takes 4 % of a core when idle (measured)
QUEUE_SECONDS = 0.02
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
VIEWPORT = "width=device-width, initial-scale=1, interactive-widget=resizes-content"


def mount_page(
    app: fastapi.FastAPI,
    service: Service,
    store: Store,
    *,
    password: str | None = None,
    **options: Any,
) -> None:
    """Put the page at / of `app`; routes added before take precedence. `options` are those of
    `build_page`.

    With a `password` one has to log in, under any name.
    """
    expected = None if password is None else password.encode()
    theme = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
    gr.mount_gradio_app(
        app,
        build_page(service, store, **options),
        path="/",
        auth=None
        if expected is None
        else lambda _, given: hmac.compare_digest(given.encode(), expected),
        auth_message=None
        if expected is None
        else "Any name; the password is the server's api_key.",
        footer_links=[],
        run_history=False,  # it would keep a copy of every call in the browser
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=UPLOAD_BYTES,
        theme=theme.set(
            block_title_background_fill="none",
            block_title_background_fill_dark="none",
            block_title_padding="0",
            block_title_text_color="*body_text_color",
            block_title_text_weight="500",
        ),
        css=CSS,
        head=f'<meta name="viewport" content="{VIEWPORT}"><script>{SCRIPT}</script>',
        app_kwargs={"middleware": [Middleware(StaysHere)], "docs_url": None, "redoc_url": None},
    )
    only_for_visitors(app)


def build_page(
    service: Service,
    store: Store,
    *,
    compare: bool = False,
    private: bool = True,
    defaults: Sampling = WEB_CHAT,
) -> gr.Blocks:
    """The page for `mount_page`. With `compare`, a column for each of 2 to 4 checkpoints, and
    nothing is stored.

    `private`: a browser sees only the conversations that it made. Without, every browser sees all
    of them: for one person with several. ValueError for a wrong number of checkpoints to compare.
    """
    if compare and not 2 <= len(service.models) <= MOST_COLUMNS:
        raise ValueError(
            f"compare=true with {len(service.models)} checkpoint(s); give 2 to {MOST_COLUMNS}, as "
            "ckpt=base ckpt=sft"
        )
    page = (
        Compare(service, defaults) if compare else Page(service, store, defaults, private=private)
    )
    with Sealed(
        title="nanochat",
        fill_height=True,
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(3600, 3600),
    ) as blocks:
        page.build()
        blocks.unload(page.left)
    blocks.queue(default_concurrency_limit=None, api_open=False)
    blocks._queue.sleep_when_free = QUEUE_SECONDS
    return blocks
