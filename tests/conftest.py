"""What holds for every test, whoever starts them and wherever: what they inherit is set here, and
nowhere else. One thread each, so that a busy machine slows nothing down more than it must."""

import atexit
import contextlib
import getpass
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

# What changes what a command does, says or looks like; a launcher's, which Lightning would join;
# and what makes an interpreter another one. The GPUs to use and a proxy stay as they are.
INHERITED = re.compile(
    r"NANOCHAT_(?!HUB_DIR$|WRITE_GOLDEN$)|WANDB_|HF_|HUGGING|HYDRA_|GRADIO_|UVICORN_|OPENAI_|PL_"
    r"|TORCHELASTIC_|SLURM_|PMI_|OMPI_|KUBERNETES_|LC_"
    r"|(RANK|LOCAL_RANK|GROUP_RANK|NODE_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT"
    r"|LANGUAGE|NO_COLOR|CLICOLOR|FORCE_COLOR|CLICOLOR_FORCE|TTY_COMPATIBLE|TTY_INTERACTIVE|COLUMNS"
    r"|LINES|PYTHON(OPTIMIZE|INSPECT|STARTUP|WARNINGS|IOENCODING|DONTWRITEBYTECODE|NOUSERSITE"
    r"|SAFEPATH|DEVMODE|UNBUFFERED))$"
)


def set_environment() -> None:
    """Variables, file modes, limits, home folder and stdin, for this process and
    those that it starts."""
    for name in [name for name in os.environ if INHERITED.match(name)]:
        del os.environ[name]
    home = Path(os.path.expanduser("~"))
    for name, place in (
        ("PLAYWRIGHT_BROWSERS_PATH", ".cache/ms-playwright"),
        ("GIT_CONFIG_GLOBAL", ".gitconfig"),
    ):
        with contextlib.suppress(OSError):
            if (home / place).exists():
                os.environ.setdefault(name, str(home / place))
    # nobody's caches, passwords or settings; and one that can be written
    os.environ["HOME"] = tempfile.mkdtemp(prefix="nanochat-home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    os.environ.update(NETRC=os.devnull, LANG="C.UTF-8", TERM="xterm", OMP_NUM_THREADS="1")
    try:
        getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as a container may have
        os.environ["USER"] = "tester"
    for name in ("no_proxy", "NO_PROXY"):  # for the servers that tests start
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost,127.0.0.1,::1"]))
    source = str(Path(__file__).parents[1] / "src")
    others = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if source in others:  # this checkout is not installed
        os.environ["PYTHONPATH"] = source
    sys.path[:] = [path for path in sys.path if path == source or path not in filter(None, others)]
    os.umask(0o022)
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free


set_environment()
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _signals() -> None:
    """Commands that tests start have every signal as a terminal's foreground has it: a shell lets
    what it puts in the background ignore Ctrl-C, and `nohup` SIGHUP. This process goes on ignoring
    the latter: a handler that does nothing, which exec makes the default of."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def _handlers_as_before():
    """A command that a test calls in this process takes Ctrl-C for the rest of the process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors this small are slower on more threads, many times so where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def browser():
    """Chromium, headless. Of a module: while it runs, asyncio has a loop in this thread."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="pages are tested in a browser: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    with sync_api.sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, names)), None)
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser can be started here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files whose tests are all slow are not even imported for `make check`: gradio alone takes
    five seconds of every process."""
    if "not slow" in config.option.markexpr and collection_path.suffix == ".py":
        return (
            "\npytestmark = pytest.mark.slow" in collection_path.read_text(encoding="utf-8") or None
        )
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, those of whole runs before all, so that no core waits for
    one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.parent.name != "train"))
