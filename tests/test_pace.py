from __future__ import annotations

from contextlib import suppress

import pytest

from mmsearch.retrieval.pace import Pace, Stage


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_shares_are_parts_of_the_run_and_may_overlap() -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.alone(Stage.SCAN):
        clock.now += 1
    pace.workers = 2
    # Two threads decode for four seconds each; meanwhile one batch is embedded and written.
    with pace.at_work(Stage.DECODE), pace.at_work(Stage.DECODE):
        clock.now += 1
        with pace.alone(Stage.ENCODE):
            clock.now += 2
            with pace.at_work(Stage.WRITE):
                clock.now += 1
    # 5 seconds; threads were there for 1 × 1 + 4 × 2.
    assert pace.shares() == pytest.approx(
        {Stage.SCAN: 1 / 5, Stage.DECODE: 8 / 9, Stage.ENCODE: 3 / 5, Stage.WRITE: 1 / 5}
    )


@pytest.mark.parametrize("stage", Stage)
def test_the_bottleneck_is_what_kept_the_encoder_longest(stage: Stage) -> None:
    clock = Clock()
    pace = Pace(clock)
    for other in Stage:
        with pace.in_the_way(other):
            clock.now += 3 if other is stage else 2
        # Being at work beside others holds nobody up.
        with pace.at_work(other):
            clock.now += 9
    assert pace.bottleneck() is stage
    assert pace.remark().startswith(f"{stage}-bound: ")


def test_without_any_work_nothing_is_in_the_way() -> None:
    pace = Pace(Clock())
    assert pace.bottleneck() is None
    assert pace.remark() == ""
    assert set(pace.shares().values()) == {0.0}


def test_the_remark_counts_workers_and_the_encoders_time() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.workers = 2
    with pace.in_the_way(Stage.DECODE):
        clock.now += 59
    with pace.alone(Stage.ENCODE):
        clock.now += 41
    assert pace.remark() == "decode-bound: 2 workers, encoder 41 % busy"
    pace.waited(Stage.ENCODE, 100)
    assert pace.remark() == "encode-bound: 2 workers, 0 % busy"
    pace.workers = 1
    assert pace.remark() == "encode-bound: 1 worker, 0 % busy"


def test_the_remark_tells_of_now_and_the_bottleneck_of_the_whole_run() -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.in_the_way(Stage.DECODE):
        clock.now += 1000
    for _ in range(20):
        with pace.alone(Stage.ENCODE):
            clock.now += 1
        remark = pace.remark()
    assert remark.startswith("encode-bound")
    assert pace.bottleneck() is Stage.DECODE


def test_time_counts_when_a_block_fails() -> None:
    clock = Clock()
    pace = Pace(clock)
    with suppress(OSError), pace.alone(Stage.WRITE):
        clock.now += 1
        raise OSError
    assert (pace.shares()[Stage.WRITE], pace.bottleneck()) == (1.0, Stage.WRITE)
