from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random

import pytest

from mmsearch.retrieval.workers import BATCHES_PER_WINDOW, SETTLING, Climb, Workers


def climbed(rate: Callable[[int], float], start: int, most: int, windows: int = 60) -> list[int]:
    """The sizes tried, one a window, when `rate` is what each brings."""
    climb = Climb(start, most)
    sizes = []
    for _ in range(windows):
        sizes.append(climb.size)
        climb.saw(rate(climb.size))
    return sizes


def share_at(sizes: list[int], best: set[int]) -> float:
    """How much of the second half was spent where it should."""
    later = sizes[len(sizes) // 2 :]
    return sum(size in best for size in later) / len(later)


@pytest.mark.parametrize("start", [1, 2, 3, 8])
def test_it_finds_the_peak_from_either_side_and_stays(start: int) -> None:
    peak = {1: 10.0, 2: 19.0, 3: 30.0, 4: 26.0, 5: 20.0, 6: 16.0, 7: 12.0, 8: 9.0}
    sizes = climbed(peak.__getitem__, start, most=8)
    assert share_at(sizes, {3}) > 0.75
    assert set(sizes) <= set(peak)


def test_a_disk_that_is_waited_for_gets_as_many_as_there_may_be() -> None:
    sizes = climbed(lambda size: float(size), start=3, most=20)
    assert share_at(sizes, {19, 20}) > 0.75


def test_where_sizes_make_no_difference_it_stays_where_it_began() -> None:
    chance = Random(0)
    sizes = climbed(lambda _: chance.uniform(98, 102), start=3, most=8, windows=200)
    assert sizes.count(3) > 150
    assert set(sizes) <= {2, 3, 4}


def test_one_thread_stays_one() -> None:
    assert set(climbed(lambda _: 1.0, start=1, most=1)) == {1}


def test_pictures_that_grow_along_the_way_do_not_look_like_a_loss() -> None:
    window = iter(range(10_000))
    sizes = climbed(lambda size: min(size, 6) * 0.99 ** next(window), start=2, most=8)
    assert share_at(sizes, {6, 7}) > 0.75


def test_what_changes_later_is_noticed() -> None:
    climb = Climb(2, 8)
    for _ in range(100):
        climb.saw(10.0 - abs(climb.size - 2))
    assert climb.size in {1, 2, 3}
    sizes = []
    for _ in range(300):
        sizes.append(climb.size)
        climb.saw(float(climb.size))
    assert share_at(sizes, {7, 8}) > 0.75


def test_never_more_at_work_than_places() -> None:
    workers = Workers(start=2, most=6)
    at_work = most_seen = 0
    lock = threading.Lock()
    both_in = threading.Barrier(2, timeout=10)

    def work() -> None:
        nonlocal at_work, most_seen
        with workers.place():
            with lock:
                at_work += 1
                most_seen = max(most_seen, at_work)
            both_in.wait()
            with lock:
                at_work -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_seen == 2


def test_a_rate_is_that_of_enough_batches_in_enough_time() -> None:
    now = 0.0
    workers = Workers(start=2, most=8, now=lambda: now)
    sizes = []
    for _ in range(60):
        workers.finished(32)
        sizes.append(workers.size)
        now += 0.6
    changes = [i for i in range(1, 60) if sizes[i] != sizes[i - 1]]
    # The first batch also loads the model; then a window, and each change has to settle first.
    assert changes[0] == BATCHES_PER_WINDOW
    assert changes[1] - changes[0] == SETTLING + BATCHES_PER_WINDOW


def test_a_new_place_wakes_who_waits_for_one() -> None:
    now = 0.0
    workers = Workers(start=1, most=2, now=lambda: now)
    entered = threading.Event()

    def second() -> None:
        with workers.place():
            entered.set()

    with workers.place():
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.05)
        for _ in range(BATCHES_PER_WINDOW + 1):
            workers.finished(64)
            now += 1.0
        assert workers.size == 2
        assert entered.wait(10)
    thread.join()


def test_what_lies_ahead_is_not_taken_for_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer readers leave the encoder more, and for a while it lives on what was read before."""
    now, rates = 0.0, []
    saw = Climb.saw

    def recorded(climb: Climb, rate: float) -> int:
        rates.append(rate)
        return saw(climb, rate)

    monkeypatch.setattr(Climb, "saw", recorded)
    workers = Workers(start=3, most=8, now=lambda: now)
    size, since = 3, 0
    for _ in range(200):
        # The batches that were read before a change come twice as fast.
        now += 0.5 if size != 3 and since < SETTLING else 1.0
        workers.finished(32)
        since += 1
        if workers.size != size:
            size, since = workers.size, 0
    assert len(rates) > 5
    assert rates == pytest.approx([32.0] * len(rates))
