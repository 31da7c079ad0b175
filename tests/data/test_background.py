"""Iteration in a background thread."""

import threading
import time

import pytest

from solo_infer.data.background import iterate_in_background


def test_items_are_in_order_and_the_thread_ends():
    before = threading.active_count()
    assert list(iterate_in_background(lambda: (item for item in range(50)), capacity=2)) == list(range(50))
    assert threading.active_count() == before


def test_error_comes_after_the_items():
    def produce():
        yield 1
        yield 2
        raise KeyError("broken")

    items = iterate_in_background(produce, capacity=2)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(items)


def test_generator_pauses_when_the_queue_is_full():
    produced, full = [], threading.Event()

    def produce():
        for index in range(100):
            produced.append(index)
            if index == 3:  # one taken, two in the queue, one that has no room
                full.set()
            yield index

    items = iterate_in_background(produce, capacity=2)
    assert next(items) == 0
    assert full.wait(5)
    time.sleep(0.05)
    assert produced == [0, 1, 2, 3]
    items.close()
    assert len(produced) <= 4


def test_latest_item_is_kept():
    taken, last = threading.Event(), threading.Event()

    def produce():
        yield 0
        assert taken.wait(5)
        yield from (1, 2, 3)
        last.set()

    items = iterate_in_background(produce, capacity=2, keep_latest=True)
    assert next(items) == 0
    taken.set()
    assert last.wait(5)
    assert list(items) == [3]


def test_silence_ends_the_wait():
    release = threading.Event()

    def produce():
        yield 1
        release.wait(20)

    items = iterate_in_background(produce, capacity=2, timeout=0.1)
    assert next(items) == 1
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        next(items)
    assert time.monotonic() - start < 5
    release.set()


def test_signs_of_life_and_a_slow_consumer_are_not_silence():
    def produce():
        for _ in range(8):
            time.sleep(0.05)
            yield None
        yield 1
        yield 2

    items = iterate_in_background(produce, capacity=1, timeout=0.3)
    assert next(items) == 1
    time.sleep(0.4)
    assert list(items) == [2]


def test_closing_stops_the_generator():
    closed = threading.Event()

    def produce():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = iterate_in_background(produce, capacity=2)
    next(items)
    items.close()
    assert closed.wait(5)
