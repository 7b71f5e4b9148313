"""Machines that work together under Ray: reached, looked at, and let go of.

Everything that only Ray's driver needs is here; what is done on the machines is in `distributed`.
Ray is imported where it is used. It never reports its use anywhere, shows no dashboard, and on this
machine alone it listens on the loopback interface only.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmsearch.errors import ClusterError, MissingExtra, first_line
from mmsearch.retrieval.offline import is_here, is_offline

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AUTO", "LOCAL", "Cluster", "Node", "check_address", "joined"]

LOCAL = "local"
AUTO = "auto"
CLIENT = "ray"

REACHED_WITHIN_S = 10.0
"""A cluster that takes no connection by then is taken for unreachable."""

LOOKED_AT_WITHIN_S = 120.0
"""Seconds for every machine to start a process and say what it sees."""

LOCAL_STORE_BYTES = 256 << 20
"""Ray's shared memory on one machine: vectors on their way to the catalog, and paths on theirs."""

LONGEST_TEMPORARY = 24
"""Bytes of a path that Ray's own names can be added to."""

_LOGGERS = ("ray", "ray.data")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a cluster.

    Attributes:
        id: Ray's own.
        name: its host's name, for people; with its address where several have one name.
        cpus: that Ray may use.
        gpus: likewise.
    """

    id: str
    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that this process has joined.

    Attributes:
        ray: the library.
        address: what was asked for.
        nodes: the machines that have processors to work with.
    """

    ray: Any
    address: str
    nodes: list[Node]

    @property
    def is_client(self) -> bool:
        """Whether this process only talks to a cluster, as opposed to being a part of it."""
        return _is_client(self.address)

    def on_every_node(self, task: Callable[..., Any], *arguments: Any) -> dict[Node, Any]:  # noqa: ANN401
        """Return what `task` returns on each machine.

        Raises:
            ClusterError: not every machine answered in time.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self.ray.remote(task)
        asked = {
            node: remote.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            ).remote(*arguments)
            for node in self.nodes
        }
        try:
            said = self.ray.get(list(asked.values()), timeout=LOOKED_AT_WITHIN_S)
        except self.ray.exceptions.GetTimeoutError as error:
            raise ClusterError(
                f"Not every machine of {self.address} answered in {LOOKED_AT_WITHIN_S:.0f} s. Look "
                "at the cluster with: ray status"
            ) from error
        except self.ray.exceptions.RayError as error:
            raise ClusterError(
                f"A machine of {self.address} does not answer: {first_line(error)}. Look at the "
                "cluster with: ray status"
            ) from error
        return dict(zip(asked, said, strict=True))


def check_address(address: str) -> None:
    """Refuse what is no address of a cluster, or may not be reached.

    Raises:
        ClusterError: it is none, or on another machine although `--offline` was asked for.
        MissingExtra: Ray is not installed.
    """
    host = _place(address)[0] if address not in {LOCAL, AUTO} else None
    if host is not None and is_offline() and not is_here(host):
        raise ClusterError(
            f"{address} is another machine, and --offline forbids to reach any. Leave one of them "
            "away."
        )
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray")


@contextmanager
def joined(address: str) -> Iterator[Cluster]:
    """Join the cluster at an address, and leave it in the end; what was started here ends.

    Args:
        address: `local` for this machine alone, `auto` for the cluster that it is a part of,
            `ray://HOST:PORT` for one to be reached as a client, `HOST:PORT` for one to join.

    Raises:
        ClusterError: nobody answers there, or its Ray or Python is another than ours.
        MissingExtra: Ray is not installed, or not all of it.
    """
    check_address(address)
    environment = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    _prepare_environment()
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra(error.name or "ray", "ray") from error
    if ray.is_initialized():
        raise ClusterError(
            "This process has joined a cluster of Ray already. Leave it first: ray.shutdown()"
        )
    handler = _signal_handler()
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    temporary = _own_folder() if address == LOCAL else None
    try:
        with _quiet():
            _connect(ray, address, temporary)
        _keep_from_stdout(ray)
        # Ray takes what ends a program politely for itself.
        _restore_signal_handler(handler)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        nodes = _nodes(ray)
        if not nodes:
            raise ClusterError(f"No machine of {address} has processors that Ray may use.")
        yield Cluster(ray, address, nodes)
    finally:
        with suppress(Exception):
            ray.shutdown()
        _restore_signal_handler(handler)
        # Ray tells itself there how it was started, which another cluster may not be.
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            del os.environ[name]
        os.environ.update(environment)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _own_folder() -> Path:
    """Make a folder for Ray's sockets, whose paths may have no more than 107 bytes."""
    usual = tempfile.gettempdir()
    short = len(os.fsencode(usual)) <= LONGEST_TEMPORARY or not Path("/tmp").is_dir()
    return Path(tempfile.mkdtemp(prefix="mms-", dir=usual if short else "/tmp"))


def _prepare_environment() -> None:
    """Say what Ray reads from the environment, before it is imported."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Of its C++ part, which writes to our stderr.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What we start is all there is to this machine's work: not behind everything else, Ray's way.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _keep_from_stdout(ray: Any) -> None:  # noqa: ANN401
    """Have Ray not print to stdout, which is ours, when a machine or a process is lost.

    What comes of that is told as an error or a problem; there is no setting for it.
    """
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray's C++ part says while it starts, which nothing else can, from our stderr."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _connect(ray: Any, address: str, temporary: Path | None) -> None:  # noqa: ANN401
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address == LOCAL:
            ray.init(
                address=LOCAL,
                include_dashboard=False,
                num_cpus=os.cpu_count(),
                object_store_memory=LOCAL_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(temporary),
                **quiet,
            )
            return
        if address != AUTO:
            _knock(address)
        ray.init(address=address, **quiet)
    except (ConnectionError, TimeoutError) as error:
        if address == AUTO:
            raise ClusterError(
                "This machine is a part of no cluster of Ray that runs. Start one with: ray start "
                "--head, name another: --on ray://HOST:10001, or use this machine: --on local"
            ) from error
        raise ClusterError(
            f"Ray at {address} does not answer as a cluster should. Check the port (with ray:// it "
            "is 10001 of the head) and, where it asks for a token, RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN."
        ) from error
    except (RuntimeError, ValueError, OSError) as error:
        if "ersion mismatch" in str(error) or "ersion_info" in str(error):
            python = ".".join(map(str, sys.version_info[:3]))
            raise ClusterError(
                f"The cluster at {address} has another version than this Python {python} with Ray "
                f"{ray.__version__}: {first_line(error)}. Install the same on both sides."
            ) from error
        raise ClusterError(f"Ray cannot be used at {address}: {first_line(error)}.") from error


def _knock(address: str) -> None:
    """See whether anybody listens at an address; Ray itself would try for minutes."""
    host, port = _place(address)
    try:
        socket.create_connection((host, port), REACHED_WITHIN_S).close()
    except OSError as error:
        raise ClusterError(
            f"Nobody answers at {address}: {error.strerror or error}. Check the address, and that "
            "the cluster runs: ray status"
        ) from error


def _nodes(ray: Any) -> list[Node]:  # noqa: ANN401
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    hosts = [node["NodeManagerHostname"] for node in alive]
    nodes = []
    for node in sorted(alive, key=lambda node: str(node["NodeID"])):
        host = node["NodeManagerHostname"]
        name = host if hosts.count(host) == 1 else f"{host}-{node['NodeID'][:6]}"
        resources = node["Resources"]
        nodes.append(Node(node["NodeID"], name, resources["CPU"], resources.get("GPU", 0.0)))
    return nodes


def _is_client(address: str) -> bool:
    return address.startswith(f"{CLIENT}://")


def _place(address: str) -> tuple[str, int]:
    """Return the host and the port of an address."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in {"", CLIENT} or not host or port is None:
        raise ClusterError(
            f"'{address}' is no address of a cluster. Give local, auto or ray://HOST:10001."
        )
    return host, port


def _signal_handler() -> Any:  # noqa: ANN401
    return signal.getsignal(signal.SIGTERM) if _is_main_thread() else None


def _restore_signal_handler(handler: Any) -> None:  # noqa: ANN401
    if handler is not None and _is_main_thread():
        signal.signal(signal.SIGTERM, handler)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
