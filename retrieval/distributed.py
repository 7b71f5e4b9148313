"""Files through encoders on several machines, by Ray Data; the catalog is written here alone.

    blocks of paths → a pool of actors, one encoder each: read, embed → batches, in the files' order

An actor does with a block what `embedding.embed_files` does with all files on one machine. Ray
gives a block again to another actor where a machine is lost; it comes out once. A picture that
takes its process down with it, time after time, is found out and left out (`blocks`).
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import socket
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.errors import ClusterError, MmsearchError
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.blocks import (
    BlockEmbedder,
    KnownContents,
    Ledger,
    NodeRates,
    blocks_of,
    in_order,
)
from mmsearch.retrieval.cluster import LOCAL, Cluster, Node
from mmsearch.retrieval.embedding import Embedded
from mmsearch.retrieval.encoders import Encoder, load_encoder
from mmsearch.retrieval.pace import Pace, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.scan import FoundFile
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["embed_on"]

CALLS_AT_ONCE = 2
"""Blocks under way in an actor: one is read while the other is embedded."""

CALLS_AHEAD = 2 * CALLS_AT_ONCE
"""Blocks that an actor has been given, those under way among them."""

DEATHS_AT_BIRTH = 4
"""So many actors more than twice what there are may fail to start, one after the other."""

SHIPPED_BYTES = 2 << 30
"""A model's folder of up to this size is sent to machines that do not have it."""

ENVIRONMENT = ("MMSEARCH_BFLOAT16", "MMSEARCH_OFFLINE")
"""What this process was told, and the others must know."""


@dataclass(frozen=True, slots=True)
class Work:
    """What an actor needs besides blocks; small, but for what it refers to.

    Attributes:
        root: what the paths are relative to, at the same place on every machine.
        model: what `load_encoder` takes.
        spec: of the encoder that it must be.
        shipped: a reference to the files of the model's folder, where machines lack it.
        contents: a reference to the hashes of what is not decoded, see `KnownContents.packed`.
        ledger: the actor that keeps the `Ledger`.
        nodes: name, and how many pictures are read at once, about, by Ray's name of a machine.
        most_pixels: Pillow's limit.
        environment: to be set.
    """

    root: Path
    model: str
    spec: EncoderSpec
    shipped: Any
    contents: Any
    ledger: Any
    nodes: dict[str, tuple[str, int]]
    most_pixels: int | None
    environment: dict[str, str]


class _Actor:
    """What Ray Data makes once per process: rows of pickled blocks in, of pickled answers out."""

    def __init__(self, work: Work) -> None:
        import ray
        from PIL import Image

        os.environ.update(work.environment)
        Image.MAX_IMAGE_PIXELS = work.most_pixels
        encoder = _load(work.model, work.spec, work.shipped and ray.get(work.shipped))
        ledger = work.ledger
        # One that joined later is not among those that were there in the beginning.
        here = socket.gethostname(), os.cpu_count() or 1
        node, threads = work.nodes.get(ray.get_runtime_context().get_node_id(), here)

        class Remote:
            def begin(self, number: int) -> int:
                return int(ray.get(ledger.begin.remote(number)))

            def alone(self, path: str) -> int:
                return int(ray.get(ledger.alone.remote(path)))

            def ended(self, path: str) -> None:
                ray.get(ledger.ended.remote(path))

        self._embedder = BlockEmbedder(
            work.root,
            encoder,
            KnownContents(ray.get(work.contents)),
            Remote(),
            node=node,
            threads=threads,
        )

    def __call__(self, rows: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        done = [pickle.dumps(self._embedder.embed(pickle.loads(row))) for row in rows["block"]]
        return {"done": done}


def _load(model: str, spec: EncoderSpec, shipped: dict[str, bytes] | None) -> Encoder:
    """Return the encoder of a run, from the files that came along where there are any.

    Raises:
        ModelError: it is not here, or cannot be loaded.
        ClusterError: it is another here.
    """
    if shipped is not None:
        place = tempfile.mkdtemp(prefix="mmsearch-model-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        # Its name may be a part of what it is called.
        folder = Path(place, Path(model).name)
        for path, content in shipped.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        model = str(folder)
    encoder = load_encoder(model)
    if encoder.spec != spec:
        raise ClusterError(
            f"{model} makes other vectors on {socket.gethostname()} than here. Install the same "
            "version of mmsearch, and of the model, on every machine."
        )
    return encoder


def embed_on(
    cluster: Cluster,
    root: Path,
    files: Mapping[str, FoundFile],
    encoder: Encoder,
    *,
    contents: Iterable[bytes],
    pace: Pace,
    rates: NodeRates,
) -> Generator[Embedded, None, None]:
    """Yield what became of `files`, in their order, as `embedding.embed_files` does.

    Args:
        cluster: does the work.
        root: what the paths of `files` are relative to, here and on all machines.
        files: what to read.
        encoder: embeds the pictures; on the machines, what `load_encoder` makes of its location.
        contents: hashes of what is not decoded, because its vector is known.
        pace: hears what was waited for.
        rates: hears which machine did how much.

    Raises:
        ClusterError: a machine cannot do its part, or all of them are gone.
    """
    if not files:
        return
    ray = cluster.ray
    blocks = [
        pickle.dumps(block) for block in blocks_of(files, encoder.batch_size, len(cluster.nodes))
    ]
    shipped = _look_around(cluster, root, files, encoder)
    ledger = ray.remote(Ledger).options(**_beside_us(cluster)).remote()
    work = Work(
        root,
        encoder.location,
        encoder.spec,
        None if shipped is None else ray.put(shipped),
        ray.put(KnownContents.packed(contents)),
        ledger,
        {node.id: (node.name, _threads(node)) for node in cluster.nodes},
        _most_pixels(),
        {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    )
    pool = _Pool.of(cluster, len(blocks))
    answers = _from_afar(cluster, blocks, work, pool) if cluster.is_client else None
    done = (pickle.loads(row) for row in answers or _stream(blocks, work, pool))
    ordered = in_order(done, len(blocks))
    asked = None
    try:
        while True:
            one = next(ordered, None)
            if one is None:
                return
            # The first comes when processes have started and a model was loaded.
            if asked is not None:
                pace.waited(one.bottleneck or Stage.ENCODE, time.perf_counter() - asked)
            rates.add(one)
            yield from one.batches
            asked = time.perf_counter()
    except MmsearchError:
        raise
    except Exception as error:
        raise _explained(error, cluster) from error
    finally:
        ordered.close()


@dataclass(frozen=True, slots=True)
class _Pool:
    """How many actors there are, and what each takes.

    Half of a machine's processors each, although it uses them all: so that another fits there when
    a machine is lost, whose blocks would else wait until all others are done.
    """

    cpus: float
    gpus: int
    first: int
    most: int

    @classmethod
    def of(cls, cluster: Cluster, blocks: int) -> _Pool:
        nodes = cluster.nodes
        with_gpus = [node for node in nodes if node.gpus >= 1]
        if with_gpus:
            count = sum(int(node.gpus) for node in with_gpus)
            share = min(node.cpus / int(node.gpus) for node in with_gpus) / 2
        else:
            count = len(nodes)
            share = min(node.cpus for node in nodes) / 2
        first = min(count, blocks)
        # Machines may join, and a second process on one costs little.
        most = count if cluster.address == LOCAL else 2 * count
        return cls(share, 1 if with_gpus else 0, first, min(most, blocks))


def _stream(blocks: list[bytes], work: Work, pool: _Pool) -> Iterator[bytes]:
    """Yield pickled `Done`s of pickled blocks, in order; what runs where Ray Data may run."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # One that is given up before it ran, as there is nothing left for it, counts as a death too.
    context.max_consecutive_actor_init_deaths = 2 * pool.most + DEATHS_AT_BIRTH
    rows = ray.data.from_items(
        [{"block": block} for block in blocks], override_num_blocks=len(blocks)
    )
    answers = rows.map_batches(
        _Actor,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_args=[work],
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=pool.first,
            max_size=pool.most,
            max_tasks_in_flight_per_actor=CALLS_AHEAD,
            max_concurrent_calls_per_actor=CALLS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
    )
    for row in answers.iter_rows():
        yield row["done"]


class _Conductor:
    """Runs Ray Data on the cluster for a client, in which it cannot run."""

    def __init__(self, blocks: list[bytes], work: Work, pool: _Pool) -> None:
        self._answers = _stream(blocks, work, pool)

    def next(self) -> bytes | None:
        return next(self._answers, None)


def _from_afar(cluster: Cluster, blocks: list[bytes], work: Work, pool: _Pool) -> Iterator[bytes]:
    ray = cluster.ray
    conductor = ray.remote(_Conductor).options(**_beside_us(cluster)).remote(blocks, work, pool)
    coming = conductor.next.remote()
    while (answer := ray.get(coming)) is not None:
        coming = conductor.next.remote()
        yield answer


def _beside_us(cluster: Cluster) -> dict[str, Any]:
    """Return options of an actor that goes where a lost machine does not take it along."""
    if cluster.is_client:
        return {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = cluster.ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }


def _threads(node: Node) -> int:
    return max(1, int(node.cpus / max(1, int(node.gpus))))


def _most_pixels() -> int | None:
    from PIL import Image

    return Image.MAX_IMAGE_PIXELS


def _look_around(
    cluster: Cluster, root: Path, files: Mapping[str, FoundFile], encoder: Encoder
) -> dict[str, bytes] | None:
    """See whether every machine has what it needs; return the model's files if some lack it.

    Raises:
        ClusterError: one lacks mmsearch, the pictures, or a model that cannot be sent to it.
    """
    import mmsearch

    version, first = mmsearch.__version__, next(iter(files))
    address = address_of(first)
    sample = None
    if address is None:
        # Of what lies in a container that one is a file.
        sample = next(each for each in (root / first, *(root / first).parents) if each.is_file())
    model = Path(encoder.location)
    is_folder = (model / "encoder.json").is_file()

    # Inside of a function, so that it travels as code: mmsearch may be missing there.
    def look() -> tuple[str | None, str, bool]:
        try:
            import mmsearch
        except ImportError:
            return None, "", False
        if mmsearch.__version__ != version:
            return str(mmsearch.__version__), "", False
        lacks = "" if sample is None or sample.is_file() else f"cannot see {sample}"
        if address is not None:
            from mmsearch.retrieval.objects import check_driver

            try:
                check_driver(address)
            except mmsearch.MmsearchError as error:
                lacks = f"cannot read {address}: {error}"
        return version, lacks, not is_folder or (model / "encoder.json").is_file()

    seen = cluster.on_every_node(look)
    for node, (there, lacks, _) in seen.items():
        _refuse_unfit(f"{node.name} of {cluster.address}", there, lacks, in_store=bool(address))
    if all(has_model for _, _, has_model in seen.values()):
        return None
    parts = [path for path in sorted(model.rglob("*")) if path.is_file()]
    if sum(path.stat().st_size for path in parts) > SHIPPED_BYTES:
        lacking = next(node.name for node, (_, _, has_model) in seen.items() if not has_model)
        raise ClusterError(
            f"{lacking} of {cluster.address} has no {model}, which is too large to be sent. Put it "
            "at the same place on every machine."
        )
    return {path.relative_to(model).as_posix(): path.read_bytes() for path in parts}


def _refuse_unfit(machine: str, there: str | None, lacks: str, *, in_store: bool) -> None:
    """Raise where a machine has not our version, or lacks something."""
    import mmsearch

    version = mmsearch.__version__
    if there != version:
        what = "no mmsearch" if there is None else f"mmsearch {there}"
        raise ClusterError(
            f"{machine} has {what}, and {version} is needed. Install it on every machine: "
            'pip install "mmsearch[ray]"'
        )
    if lacks and in_store:
        raise ClusterError(f"{machine} {lacks}")
    if lacks:
        raise ClusterError(
            f"{machine} {lacks}. Mount the folder at the same place on every machine, or index an "
            "object store: s3://bucket/photos"
        )


def _explained(error: Exception, cluster: Cluster) -> MmsearchError:
    """Return what a failure of Ray's comes to, in one line."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, MmsearchError):
            return ClusterError(str(cause))
        cause = getattr(cause, "cause", None) or cause.__cause__
    # Of a trace from elsewhere the last line says what it was.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = lines[-1].rstrip(".") if lines else type(error).__name__
    return ClusterError(
        f"The work on {cluster.address} ended early: {why}. What came until then is saved; run the "
        "same command again."
    )
