import asyncio
import threading
import time

import pytest

from mmsearch.retrieval.web.batching import Batcher, Busy, Closed


class Slow:
    """Answers when it is let go, and remembers what came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, questions):
        self.batches.append(list(questions))
        self.begun.release()
        self.go.acquire()
        return [ValueError(q) if q < 0 else 10 * q for q in questions]


@pytest.fixture
def slow():
    return Slow()


def let_go(slow: Slow) -> None:
    for _ in range(100):
        slow.go.release()


def test_a_question_that_comes_alone_is_answered_alone_and_others_gather(slow):
    batcher = Batcher(slow, largest=4, threads=1)
    first = batcher.submit(1)
    slow.begun.acquire()
    rest = [batcher.submit(q) for q in range(2, 9)]
    let_go(slow)
    assert [f.result(10) for f in [first, *rest]] == [10 * q for q in range(1, 9)]
    batcher.close()
    assert slow.batches == [[1], [2, 3, 4, 5], [6, 7, 8]]


def test_an_error_is_the_answer_to_one_question_only(slow):
    let_go(slow)
    batcher = Batcher(slow, threads=1)
    futures = [batcher.submit(q) for q in (3, -1, 4)]
    assert futures[0].result(10) == 30
    with pytest.raises(ValueError, match="-1"):
        futures[1].result(10)
    assert futures[2].result(10) == 40
    batcher.close()


def test_what_the_function_raises_is_told_to_all_and_the_thread_goes_on():
    calls = []

    def answer(questions):
        calls.append(questions)
        if len(calls) == 1:
            raise OSError("the disk stumbled")
        return questions

    batcher = Batcher(answer, threads=1)
    with pytest.raises(OSError, match="stumbled"):
        batcher.submit(1).result(10)
    assert batcher.submit(2).result(10) == 2
    batcher.close()


def test_too_many_are_told_when_to_come_back(slow):
    batcher = Batcher(slow, largest=1, waiting=2, threads=1)
    futures = [batcher.submit(0)]
    slow.begun.acquire()
    futures += [batcher.submit(q) for q in (1, 2)]
    assert len(batcher) == 2
    with pytest.raises(Busy) as refused:
        batcher.submit(3)
    assert refused.value.seconds >= 1
    let_go(slow)
    assert [f.result(10) for f in futures] == [0, 10, 20]
    batcher.close()


def test_closing_answers_what_waits_and_takes_no_more(slow):
    batcher = Batcher(slow, largest=1, threads=1)
    futures = [batcher.submit(q) for q in range(3)]
    slow.begun.acquire()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher.closing:
        time.sleep(0.001)
    with pytest.raises(Closed):
        batcher.submit(1)
    let_go(slow)
    closing.join(10)
    assert all(future.done() for future in futures)


def test_a_question_nobody_waits_for_is_not_asked(slow):
    async def ask() -> None:
        batcher = Batcher(slow, largest=1, threads=1)
        first = asyncio.ensure_future(batcher.ask(1))
        await asyncio.to_thread(slow.begun.acquire)
        given_up = asyncio.ensure_future(batcher.ask(2))
        last = asyncio.ensure_future(batcher.ask(3))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        let_go(slow)
        assert await first == 10
        assert await last == 30
        await asyncio.to_thread(batcher.close)

    asyncio.run(ask())
    assert slow.batches == [[1], [3]]
