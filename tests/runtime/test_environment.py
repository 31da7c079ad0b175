"""Environment variables with odd values."""

import pytest
from helpers.faulty_server import redirect, running_server

from solo_infer.data.images import load_image
from solo_infer.errors import ConfigError, DownloadError, ImageError
from solo_infer.runtime import environment
from solo_infer.weights.download import download_file

BAD_TIMEOUTS = ["text", "", "-1", "0", "nan", "inf", "1e10", "1e400", "86401", "1\n\x1b[2J"]
OTHER_SCHEMES = ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png;base64,AAAA", "gopher:x"]


@pytest.mark.parametrize("text", BAD_TIMEOUTS)
def test_timeouts_that_cannot_be_used(monkeypatch, text):
    monkeypatch.setenv(environment.TIMEOUT, text)
    with pytest.raises(ConfigError, match=f"{environment.TIMEOUT}.*expected a positive number") as caught:
        environment.network_timeout()
    assert str(caught.value).isprintable()


def test_timeouts(monkeypatch):
    assert environment.network_timeout() == 30
    for text, seconds in (("0.5", 0.5), (" 12 ", 12), ("86400", 86400)):
        monkeypatch.setenv(environment.TIMEOUT, text)
        assert environment.network_timeout() == seconds


@pytest.mark.parametrize("name", [environment.HOME, "XDG_CACHE_HOME"])
def test_paths_of_unknown_users_are_relative(monkeypatch, tmp_path, name):
    monkeypatch.delenv(environment.HOME)
    monkeypatch.setenv(name, "~no_such_user/x")
    assert environment.cache_home().parts[:2] == ("~no_such_user", "x")
    assert str(environment.mirror_directory("~no_such_user/x")) == "~no_such_user/x"


@pytest.mark.parametrize("address", ["http://[", "https://[::1/solo", "http://", "ftp://host/x", "file://[x"])
def test_mirrors_that_are_no_addresses(tmp_path, address):
    with pytest.raises((DownloadError, ConfigError)):
        if environment.mirror_directory(address) is None:
            download_file(f"{address}/a.pth", tmp_path / "a.pth", offline=False)


@pytest.mark.parametrize("target", OTHER_SCHEMES)
def test_redirects_to_other_schemes_are_refused(tmp_path, target):
    with running_server() as server:
        server.at("/a.png", redirect(target))
        with pytest.raises(ImageError, match="not HTTP|cannot be fetched|HTTP 30"):
            load_image(f"{server.base}/a.png")
        with pytest.raises(DownloadError):
            download_file(f"{server.base}/a.png", tmp_path / "a.pth", offline=False)
