"""Settings of the fuzz campaigns."""


def pytest_configure(config):
    config.addinivalue_line("markers", "fuzz: random hostile inputs, for SOLO_INFER_FUZZ_SECONDS each")
