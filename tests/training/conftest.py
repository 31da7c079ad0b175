"""Fixtures of the training tests."""

import signal

import pytest


@pytest.fixture
def default_ctrl_c():
    """Let SIGINT raise KeyboardInterrupt, also in processes that were started to ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
