"""Fixtures of the training tests."""

import signal

import pytest


@pytest.fixture(autouse=True)
def runs_without_plots(no_plots):
    """Plot no run: a file that tests plots overrides ``no_plots``."""


@pytest.fixture
def default_ctrl_c():
    """Let SIGINT raise KeyboardInterrupt, also in processes that were started to ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
