"""Memory over many images of many sizes, and one model shared by many threads.

SOLO_INFER_SOAK_IMAGES is the number of images of each test, by default 200.
"""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.results import assert_same

from solo_infer import load_model

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from Linux's /proc"),
]

IMAGES = int(os.environ.get("SOLO_INFER_SOAK_IMAGES", "200"))
THREADS = 8
MIB_PER_1000_IMAGES = 32.0  # greatest slope of the memory
SIDES = (17, 33, 64, 99, 128, 161, 224)  # pairs of them are the sizes of the images


@pytest.fixture(scope="module")
def model():
    return load_model("tiny", device="cpu")


def make_image(number):
    """Return an image (H, W, 3) uint8 of one of 49 sizes, with a few flat shapes."""
    rng = np.random.default_rng(number)
    height, width = SIDES[number % len(SIDES)], SIDES[number // len(SIDES) % len(SIDES)]
    image = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(4):
        top, left = rng.integers(0, height), rng.integers(0, width)
        image[top : top + height // 3 + 1, left : left + width // 3 + 1] = rng.integers(0, 256, 3)
    return image


def resident_mib():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope(counts, memory):
    """Return the slope of memory in MiB per 1,000 images, by least squares without the first quarter."""
    first = len(counts) // 4
    return float(np.polyfit(counts[first:], memory[first:], 1)[0]) * 1000


def test_memory_is_flat_over_many_images(model):
    counts, memory = [], []
    for number in range(IMAGES):
        model(make_image(number))
        if number % max(IMAGES // 40, 1) == 0:
            counts.append(number)
            memory.append(resident_mib())
    measured = slope(counts, memory)
    print(f"\n{IMAGES} images: {memory[0]:.0f} to {memory[-1]:.0f} MiB, {measured:+.2f} MiB per 1,000 images")
    # Below a thousand images, the noise of the allocator is more than the slope.
    assert memory[-1] - memory[len(memory) // 4] < max(MIB_PER_1000_IMAGES * IMAGES / 1000, 16.0)


def test_threads_get_the_results_of_a_single_one(model):
    count = max(IMAGES // THREADS, 1)
    expected = [model(make_image(number)) for number in range(count)]
    shared, failures, memory = load_model("tiny", device="cpu"), [], []

    def work(first):
        for step in range(count):
            number = (first + step) % count
            try:
                assert_same(shared(make_image(number)), expected[number])
            except BaseException as error:
                failures.append((number, repr(error)))
            if first == 0:
                memory.append(resident_mib())

    threads = [threading.Thread(target=work, args=(index * count // THREADS,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    measured = slope(list(range(count)), memory) / THREADS
    print(f"\n{THREADS} threads x {count} images: equal, {measured:+.2f} MiB per 1,000 images")
    assert memory[-1] - memory[len(memory) // 4] < max(MIB_PER_1000_IMAGES * count * THREADS / 1000, 64.0)
