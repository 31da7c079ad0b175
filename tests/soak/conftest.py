"""Settings of the soak tests, which are run by hand: ``pytest -m soak tests/soak``."""


def pytest_configure(config):
    config.addinivalue_line("markers", "soak: many images, to show that memory stays flat")
