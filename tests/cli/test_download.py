"""``solo-infer download``."""

from helpers.command_line import BODIES, assert_clear
from helpers.faulty_server import content, forbid_sockets, status

from solo_infer.runtime import environment

pytest_plugins = ["helpers.command_line_fixtures"]


def test_download_into_the_cache(run, published, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv(environment.HOME, str(tmp_path / "home"))
    code, out, err = run("download", "tiny_a")
    target = tmp_path / "home" / "weights" / "tiny_a.pth"
    assert (code, out, err) == (0, f"{target}\n", "")
    assert target.read_bytes() == BODIES["tiny_a"]


def test_bundle(run, published, mirror, tmp_path):
    bundle = tmp_path / "a bundle"
    code, out, err = run("download", "tiny_a", "tiny_b", "tiny_a", "--output", bundle)
    assert code == 0
    assert out.splitlines() == [str(bundle / "weights" / f"{name}.pth") for name in BODIES]
    for name, body in BODIES.items():
        assert (bundle / "weights" / f"{name}.pth").read_bytes() == body
    assert "license of tiny_b: for tests only" in err and "license of tiny_a" not in err
    assert f"{environment.HOME}={bundle} {environment.OFFLINE}=1" in err


def test_bundle_serves_an_offline_machine(run, published, mirror, tmp_path, monkeypatch):
    run("download", "tiny_a", "--output", tmp_path / "bundle")
    forbid_sockets(monkeypatch)
    monkeypatch.delenv(environment.MIRROR)
    monkeypatch.setenv(environment.HOME, str(tmp_path / "bundle"))
    monkeypatch.setenv(environment.OFFLINE, "1")
    code, out, _ = run("download", "tiny_a")
    assert (code, out) == (0, f"{tmp_path / 'bundle' / 'weights' / 'tiny_a.pth'}\n")


def test_failed_download_does_not_stop_the_others(run, published, mirror, tmp_path):
    mirror.at("/solo/tiny_a.pth", status(404))
    code, out, err = run("download", "tiny_a", "tiny_b", "--output", tmp_path / "bundle")
    assert code == 1
    assert out == f"{tmp_path / 'bundle' / 'weights' / 'tiny_b.pth'}\n"
    assert_clear(err, "DownloadError: No source provides tiny_a", "HTTP 404", "1 failed, 1 done")
    assert environment.OFFLINE not in err


def test_wrong_content_is_rejected(run, published, mirror, tmp_path):
    mirror.at("/solo/tiny_a.pth", content(b"something else"))
    code, out, err = run("download", "tiny_a", "--output", tmp_path / "bundle")
    assert (code, out) == (1, "")
    assert_clear(err, "SHA-256")
    assert not (tmp_path / "bundle" / "weights" / "tiny_a.pth").exists()


def test_bundle_that_cannot_be_written(run, published, mirror, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, out, err = run("download", "tiny_a", "--output", tmp_path / "file" / "bundle")
    assert (code, out) == (1, "")
    assert_clear(err, "CacheError")


def test_quiet_hides_everything_except_errors(run, published, mirror, tmp_path):
    mirror.at("/solo/tiny_a.pth", status(404))
    code, out, err = run("download", "tiny_b", "--output", tmp_path / "bundle", "--quiet")
    assert (code, err) == (0, "") and out.endswith("tiny_b.pth\n")
    code, out, err = run("download", "tiny_a", "--quiet")
    assert (code, out) == (1, "")
    assert_clear(err, "DownloadError", "1 failed, 0 done")
