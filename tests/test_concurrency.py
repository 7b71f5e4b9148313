"""One library, many readers, and a writer: every answer is that of one committed state.

Readers note when they asked and what they were told; the writer's every commit is noted with the
vectors that it left behind. Afterwards each answer is compared, by brute force, with the states
that were there while it was given. A mixture of two states fits none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmsearch.errors import LibraryLocked
from mmsearch.retrieval import engine as engine_module
from mmsearch.retrieval import model_change, tuning
from mmsearch.retrieval.catalog import Catalog, Transaction
from mmsearch.retrieval.engine import SearchEngine, open_engine
from mmsearch.retrieval.ingest import IndexReport, index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Target
from tests.conftest import ColourEncoder
from tests.test_tuning import ToneEncoder, tones, words, write_pairs

CLONE = Path(__file__).parents[1]
PICTURES = 100
K = 5
QUERIES = ("text", "filtered", "picture", "filtered picture")
CLOSE = 3e-3
"""Scores are compared after vectors were kept as float16."""
READING = "from tests.test_concurrency import main; main()"


class Tone(ToneEncoder):
    """An encoder that `load_encoder` finds again, by `findable`."""

    @property
    def location(self) -> str:
        return f"tone-{self.spec.revision}"


class Squared(Tone):
    """Another encoder with another space of the same dimension."""

    @staticmethod
    def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
        return ColourEncoder._unit(rows**2)


ENCODERS = {"tone-1": Tone("1"), "tone-2": Squared("2")}


def find(name: str | ColourEncoder, *, asking: bool = False) -> ColourEncoder:
    return ENCODERS[name] if isinstance(name, str) else name


@dataclass(frozen=True)
class Answer:
    """What a reader was told, and when it asked and was told (`time.monotonic`)."""

    kind: str
    number: int
    asked: float
    told: float
    hits: list[tuple[str, float]]
    adapted: bool


@dataclass(frozen=True)
class State:
    """What a commit left behind."""

    began: float
    ended: float
    vectors: dict[str, NDArray[np.float32]]
    encoder: ColourEncoder
    adapt: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    @classmethod
    def now(cls, folder: Path, began: float, ended: float) -> State:
        with closing(Library.open(folder)) as library:
            row = library.catalog.library()
            assert row.encoder_id is not None
            assert row.encoder is not None
            assert row.model is not None
            ids, vectors = library.catalog.file_vectors(row.encoder_id, row.encoder.dim)
            rows = dict(zip(ids.tolist(), vectors.astype(np.float32), strict=True))
            known = library.catalog.known_files(row.encoder_id)
            adapter = library.adapter(row)
        return cls(
            began,
            ended,
            {path: rows[file.id] for path, file in known.items() if file.embedded},
            ENCODERS[row.model],
            (lambda plain: plain) if adapter is None else adapter.apply,
        )

    def fits(self, answer: Answer) -> bool:
        """Say whether this state gives that answer."""
        question = embedded(self.encoder, answer.number, "picture" in answer.kind)
        if "picture" not in answer.kind:
            question = self.adapt(question[None])[0]
        scores = {
            path: float(vector @ question)
            for path, vector in self.vectors.items()
            if "filtered" not in answer.kind or path.endswith("1.png")
        }
        told = dict(answer.hits)
        if len(told) != min(K, len(scores)) or not told.keys() <= scores.keys():
            return False
        worst = min(told.values(), default=0.0)
        return all(
            abs(told[path] - score) < CLOSE if path in told else score < worst + CLOSE
            for path, score in scores.items()
        )


@cache
def embedded(encoder: ColourEncoder, number: int, as_picture: bool) -> NDArray[np.float32]:
    """The vector of a question."""
    if as_picture:
        return encoder.encode_images([picture(number)])[0]
    return encoder.encode_texts([words(number)])[0]


def picture(number: int) -> Image.Image:
    return Image.fromarray(tones(number)).resize((16, 16), Image.Resampling.NEAREST)


def ask(engine: SearchEngine, kind: str, number: int) -> Answer:
    where = "name LIKE '%1.png'" if "filtered" in kind else None
    asked = time.monotonic()
    if "picture" in kind:
        found = engine.search(image=picture(number), k=K, where=where)
    else:
        found = engine.search(words(number), k=K, where=where, words=False)
    hits = [(hit.path, float(hit.score)) for hit in found.hits]
    return Answer(kind, number, asked, time.monotonic(), hits, found.adapter is not None)


def read(engine: SearchEngine, seed: int, over: Callable[[], bool]) -> list[Answer]:
    """Ask one question after the other until it is over."""
    chance = np.random.default_rng(seed)
    answers = []
    while not over():
        kind = QUERIES[len(answers) % len(QUERIES)]
        answers.append(ask(engine, kind, int(chance.integers(0, PICTURES))))
        time.sleep(0.02)
    return answers


def read_in_threads(folder: Path, seeds: list[int], over: Callable[[], bool]) -> list[Answer]:
    """Let several threads ask one open library; an error in any of them is raised."""
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def one(seed: int) -> None:
        try:
            answers.extend(read(engine, seed, over))
        except BaseException as error:
            errors.append(error)

    with open_engine(folder) as engine:
        threads = [threading.Thread(target=one, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return answers


def main() -> None:
    """Read in a process of its own until there is the file that ends it; print the answers."""
    folder, end, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    engine_module.load_encoder = find  # type: ignore[assignment]
    answers = read_in_threads(folder, [seed, seed + 1], end.exists)
    sys.stdout.write(json.dumps([asdict(answer) for answer in answers]))


@pytest.fixture
def findable(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (model_change, engine_module):
        monkeypatch.setattr(module, "load_encoder", find)


@pytest.fixture
def library(tmp_path: Path, findable: None, catalog_url: str | None) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(PICTURES):
        picture(i).save(folder / f"{i:03}.png")
    for i in range(0, PICTURES, 5):
        (folder / f"{i:03}.png").rename(tmp_path / f"{i:03}.png")
    pairs = [(f"{i:03}.png", words(i)) for i in range(PICTURES)]
    index(
        folder,
        captions=write_pairs(tmp_path / "pairs.tsv", pairs),
        model=ENCODERS["tone-1"],
        catalog=catalog_url,
    )
    return folder


@pytest.fixture
def states(library: Path, monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """Every state that this thread commits, beginning with the one that is there."""
    noted = [State.now(library, -1.0, time.monotonic())]
    writer, plain = threading.current_thread(), Catalog.write

    @contextmanager
    def write(catalog: Catalog) -> Iterator[Transaction]:
        began = time.monotonic()
        with plain(catalog) as transaction:
            yield transaction
        if threading.current_thread() is writer:
            noted.append(State.now(library, began, time.monotonic()))

    monkeypatch.setattr(Catalog, "write", write)
    return noted


def check(answers: list[Answer], states: list[State]) -> Counter[int]:
    """Return how many answers belong to which state; fail where one belongs to none."""
    last = [*(state.ended for state in states[1:]), float("inf")]
    told: Counter[int] = Counter()
    for answer in answers:
        possible = [
            number
            for number, state in enumerate(states)
            if state.began <= answer.told and last[number] >= answer.asked
        ]
        fitting = next((number for number in possible if states[number].fits(answer)), None)
        assert fitting is not None, (answer, possible)
        told[fitting] += 1
    return told


def test_every_answer_is_that_of_one_state(
    library: Path, states: list[State], tmp_path: Path
) -> None:
    end = tmp_path / "end"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READING, str(library), str(end), str(seed)],
            stdout=subprocess.PIPE,
            cwd=CLONE,
            text=True,
        )
        for seed in (100, 200, 300)
    ]
    answers: list[Answer] = []
    here = threading.Thread(
        target=lambda: answers.extend(read_in_threads(library, [1, 2, 3, 4], end.exists))
    )
    here.start()
    try:
        time.sleep(3)  # the processes begin meanwhile
        for i in range(0, PICTURES, 5):
            (tmp_path / f"{i:03}.png").rename(library / f"{i:03}.png")
            (library / f"{(i + 7) % PICTURES:03}.png").unlink()
        index(library, model=ENCODERS["tone-1"], captions=tmp_path / "pairs.tsv")
        tuned = tuning.tune(library, model=ENCODERS["tone-1"])
        assert tuned.refusal is None
        time.sleep(0.3)
        assert model_change.migrate(library, model="tone-2").switched
        time.sleep(0.3)
        for i in range(0, PICTURES, 4):
            shutil.copyfile(library / "001.png", library / f"copy-{i}.png")
            (library / f"{i:03}.png").unlink(missing_ok=True)
        index(library, model=ENCODERS["tone-2"])
        time.sleep(0.3)
    finally:
        end.touch()
        here.join(60)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    told = check(answers, states)
    assert len(told) >= 4, "readers saw the library change"
    assert any(answer.adapted for answer in answers)
    for output in outputs:
        theirs = [Answer(**fields) for fields in json.loads(output)]
        assert len(theirs) > 10
        assert len(check(theirs, states)) >= 3


def test_a_mixture_of_states_would_be_noticed(library: Path, states: list[State]) -> None:
    with open_engine(library) as engine:
        answer = ask(engine, "text", 7)
        assert states[0].fits(answer)
        model_change.migrate(library, model="tone-2")
        now = State.now(library, 0.0, 0.0)
        assert not now.fits(answer)
        later = ask(engine, "text", 7)
        assert now.fits(later)
        mixed = [*later.hits[:3], *answer.hits[3:]]
        fields = asdict(later) | {"hits": mixed}
        assert not any(state.fits(Answer(**fields)) for state in [*states, now])


def test_what_was_kept_is_no_part_of_an_answer_about_a_later_state(
    library: Path, states: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library changes after an engine has looked at it, and before it answers."""
    with open_engine(library) as engine:
        before = ask(engine, "picture", 31)
        assert states[-1].fits(before)
        # Some of what was told is gone, and some of what comes next.
        scores = {path: vector for path, vector in states[-1].vectors.items()}
        asked = embedded(ENCODERS["tone-1"], 31, True)
        order = sorted(scores, key=lambda path: -float(scores[path] @ asked))
        seen = engine._state(Target.IMAGES)
        for path in (order[1], order[K], order[K + 2]):
            (library / path).unlink()
        # Looked up beforehand, as another question may have done.
        seen.files(seen.index.ids[::2].tolist())
        index(library, model=ENCODERS["tone-1"])
        assert seen.stamp != engine.library.catalog.stamp()
        monkeypatch.setattr(engine, "_state", lambda target: seen)
        assert states[-1].fits(ask(engine, "picture", 31))
        assert states[-1].fits(ask(engine, "text", 7))


def test_an_answer_is_of_one_state_whatever_comes_before_it(
    library: Path, states: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures come, others go, and the model is another, between the look and the answer."""
    with open_engine(library) as engine:
        look = engine._state
        changes: list[Callable[[], object]] = []

        def interrupted(target: Target) -> Any:
            state = look(target)
            if changes:
                changes.pop()()
            return state

        def come_and_go() -> None:
            """In two commits, as two runs of `index` make them."""
            for i in range(0, PICTURES, 5):
                (tmp_path / f"{i:03}.png").rename(library / f"{i:03}.png")
            index(library, model=ENCODERS["tone-1"])
            for i in range(0, PICTURES, 5):
                (library / f"{(i + 7) % PICTURES:03}.png").unlink()
            index(library, model=ENCODERS["tone-1"])

        monkeypatch.setattr(engine, "_state", interrupted)
        before = states[-1]
        changes.append(come_and_go)
        answer = ask(engine, "picture", 30)
        assert states[-1].fits(answer)
        assert not before.fits(answer)
        changes.append(lambda: model_change.migrate(library, model="tone-2"))
        answer = ask(engine, "text", 7)
        assert State.now(library, 0.0, 0.0).fits(answer)


def test_of_two_writers_one_works_and_the_other_waits_or_says_who(
    library: Path, catalog_url: str | None
) -> None:
    """Where a server keeps the catalog both work, and one of them at each picture."""
    began = threading.Barrier(2)
    outcomes: list[IndexReport | LibraryLocked] = []

    def write(wait: float) -> None:
        began.wait()
        try:
            outcomes.append(index(library, model=SlowTone("1"), wait=wait))
        except LibraryLocked as error:
            outcomes.append(error)

    for waits in ((0.0, 0.0), (60.0, 60.0)):
        outcomes.clear()
        # As no other is: a twin would not be embedded, which is what takes long.
        picture(1_000 + int(waits[0])).save(library / "more.png")
        threads = [threading.Thread(target=write, args=(wait,)) for wait in waits]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        reports = [one for one in outcomes if isinstance(one, IndexReport)]
        assert len(reports) == (2 if waits[0] or catalog_url else 1)
        assert sum(report.updated + report.added for report in reports) == 1
        for refused in outcomes:
            if isinstance(refused, LibraryLocked):
                assert f"Another mmsearch (pid {os.getpid()}, " in str(refused)


class SlowTone(Tone):
    """Takes long enough for two runs to meet."""

    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        time.sleep(1.0)
        return super()._encode_pixels(pixels)
