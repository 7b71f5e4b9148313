"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MIB", "Limits", "Settings", "is_loopback"]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of a server.

    Attributes:
        upload_bytes: the largest body of a request.
        upload_pixels: the largest picture that is decoded, by its header.
        pictures: how many pictures one question may bring.
        answers: the most answers in one response; further ones come with `offset`.
        depth: the last answer of a question that can be had.
        text: the longest question, in characters.
        export_items: pictures that one export may have.
        export_bytes: what the pictures of one export may weigh together.
        requests: requests that are worked on at a time; further ones are told to come back.
        waiting: questions that may wait for an engine; further ones are told to come back.
        rate: requests a second that one address may send, on average; 0 for any number.
        burst: how many of them at once.
        body_seconds: the time a client has to send its body.
        head_seconds: the time it has to send its request's head.
        idle_seconds: how long a connection may be silent between two requests.
        stall_seconds: how long a client may read nothing of a response.
        connections: how many are open at a time; the one that was silent longest makes room.
        slow: explanations, uploads and recommendations that may wait for their turn.
    """

    upload_bytes: int = 32 * MIB
    upload_pixels: int = 100_000_000
    pictures: int = 8
    answers: int = 200
    depth: int = 100_000
    text: int = 2_000
    export_items: int = 1_000
    export_bytes: int = 4096 * MIB
    requests: int = 512
    waiting: int = 256
    rate: float = 0.0
    burst: int = 100
    body_seconds: float = 30.0
    head_seconds: float = 15.0
    idle_seconds: int = 30
    stall_seconds: float = 30.0
    connections: int = 1_024
    slow: int = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is set up.

    Attributes:
        host: the address it listens on.
        port: the port; 0 for any that is free.
        token: what a client must show; None where anybody on this machine may ask.
        hosts: names, beside those of the machine itself, by which it may be called.
        follow_links: whether pictures may be handed out that a link in a library leads to, outside
            its folder.
        allow_indexing: whether clients may have a library indexed again.
        rerankers: names of the rerankers that a client may ask for.
        batch: how many questions are answered together at most; 1 answers each by itself.
        limits: what a client may ask.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    hosts: tuple[str, ...] = ()
    follow_links: bool = False
    allow_indexing: bool = False
    rerankers: tuple[str, ...] = ("fast",)
    batch: int = 16
    limits: Limits = Limits()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    from ipaddress import ip_address

    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
