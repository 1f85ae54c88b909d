"""Where a server listens, who may reach it there, and under what paths."""

import ipaddress
import re
import socket
from urllib.parse import unquote

from nanochat.sandbox.execution import find_guards


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(host: str, *, api_key: str | None, open: bool) -> None:
    """ValueError for an address that others can reach, unless a key or open=true says who may use
    it."""
    if api_key is not None and not (
        api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key
    ):
        raise ValueError(
            "api_key must be printable ASCII without spaces, and not empty; null needs none"
        )
    if api_key is not None and open:
        raise ValueError("api_key=… and open=true contradict each other; leave out one")
    if not is_local(host) and api_key is None and not open:
        raise ValueError(
            f"host={host} can be reached by others: give api_key=… (they send it), or open=true to "
            "let anybody use it; host=127.0.0.1 is this machine only"
        )


def check_python(host: str) -> None:
    """ValueError for running a model's Python for other machines where this one cannot confine
    it."""
    found = find_guards()
    if not is_local(host) and not found.complete:
        raise ValueError(
            f"python=true with host={host}: this machine cannot guard {', '.join(found.missing)} "
            "from programs, so it runs none for others; "
            "leave out python=true, or serve on 127.0.0.1"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that a port in use is known before a checkpoint is read.
    ValueError if it cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port={port} must be between 0 and 65535; 0 takes any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM
        )[0]
    except OSError as error:
        raise ValueError(
            f"host={host} is not the address of a machine; try host=127.0.0.1"
        ) from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ValueError(
            f"port={port} on {host} cannot be had ({error.strerror}); try port=0 for any that is "
            "free"
        ) from error
    return bound


def canonical(path: str) -> str:
    """The one spelling of a path, whatever its case, slashes, dots and percent signs."""
    for _ in range(3):
        path = unquote(path)
    words: list[str] = []
    for word in re.split(r"[/\\]+", path.lower().partition("?")[0]):
        if word == "..":
            words = words[:-1]
        elif word.strip() not in ("", "."):
            words.append(word.strip())
    return "/" + "/".join(words)
