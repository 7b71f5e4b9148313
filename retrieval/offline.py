"""Staying on this machine, enforced.

Nothing but a model of a hub, `serve` and `--server` ever uses a network. `--offline`, or the
environment variable MMSEARCH_OFFLINE, forbids even these to reach another machine: model libraries
are told to use what they have, and whatever in this process still tries to connect is refused by an
audit hook of the interpreter (PEP 578), which cannot be taken back.
"""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address
from typing import Any

__all__ = [
    "ENVIRONMENT",
    "Offline",
    "is_here",
    "is_offline",
    "stay_offline",
    "tell_model_libraries",
]

ENVIRONMENT = "MMSEARCH_OFFLINE"

_CONNECTING = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_ASKING = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})


class Offline(OSError):
    """Something tried to reach another machine, and must not."""


def is_offline() -> bool:
    """Return whether the environment forbids reaching other machines."""
    return os.environ.get(ENVIRONMENT, "").strip().lower() not in {"", "0", "false", "no", "off"}


def stay_offline() -> None:
    """Forbid it to this process, for good: for programs that own their process."""
    os.environ[ENVIRONMENT] = "1"
    tell_model_libraries()
    sys.addaudithook(_refuse)


def tell_model_libraries() -> None:
    """Have model libraries use only what was downloaded before, where that is asked for."""
    if not is_offline():
        return
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
    # Read when it is imported, which a program that embeds us may have done.
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = True


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECTING:
        address = arguments[1]
        # A string is a socket of this machine's file system.
        if isinstance(address, tuple) and not is_here(address[0]):
            raise Offline(f"offline, as asked: {address[0]} is not connected to")
    elif event in _ASKING and not is_here(arguments[0]):
        raise Offline(f"offline, as asked: {arguments[0]} is not looked up")


def is_here(host: object) -> bool:
    """Return whether a host, by name or address, is this machine."""
    if host is None:
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    if name in {"", "localhost"}:
        return True
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return False
    # 0.0.0.0 is what a server listens on.
    return address.is_loopback or address.is_unspecified
