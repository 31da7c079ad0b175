"""Commands and Python calls without standard streams, and without a home directory."""

import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from solo_infer.cli.main import main
from solo_infer.cli.terminal import standard_streams
from solo_infer.runtime import environment
from solo_infer.runtime.progress import progress_bar

pytest_plugins = ["helpers.command_line_fixtures"]


def remove_console(monkeypatch):
    """Set the standard streams to None, as in programs without a console; pytest undoes it in fixtures."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)


COMMANDS = {
    "version": (["--version"], 0),
    "help": (["predict", "--help"], 0),
    "usage error": (["predict"], 2),
    "usage error of the command": (["predict", "x.png", "--image-ids", "a.json"], 2),
    "models": (["models"], 0),
    "models as JSON": (["models", "--json"], 0),
    "info": (["info", "tiny", "--json"], 0),
    "missing model": (["info", "no_such_model"], 1),
    "predict": (["predict", "photos", "--model", "SAVED"], 0),
    "predict as JSON": (["predict", "photos", "--model", "SAVED", "--json", "--no-save"], 0),
    "failing predict": (["predict", "missing.jpg", "--model", "SAVED"], 1),
    "standard input": (["predict", "-", "--model", "SAVED"], 1),
    "verbose": (["convert", "SAVED", "--output", "new", "--verbose"], 0),
}


@pytest.mark.parametrize("arguments, expected", COMMANDS.values(), ids=COMMANDS)
def test_commands_without_a_console(run, photos, saved, monkeypatch, arguments, expected):
    from solo_infer.data import pipes

    monkeypatch.setattr(pipes, "_STDIN_DESCRIPTOR", 10_000)
    remove_console(monkeypatch)
    assert main([saved if argument == "SAVED" else argument for argument in arguments]) == expected
    assert (sys.stdin, sys.stdout, sys.stderr) == (None, None, None)


def test_progress_bars_without_a_console(monkeypatch):
    remove_console(monkeypatch)
    assert list(progress_bar(range(3))) == [0, 1, 2]
    with progress_bar(total=3) as bar:
        bar.update(2)


def test_python_calls_without_a_console(loaded, photos, monkeypatch):
    remove_console(monkeypatch)
    assert len(list(loaded.stream("photos"))) == 2
    assert loaded("photos/1.png").save("drawn.png").is_file()


@pytest.mark.skipif(os.name == "nt", reason="the shell of this system cannot close descriptors")
def test_closed_descriptors_of_a_program(tmp_path):
    """The next file that is opened would get the descriptor of standard output."""
    command = f"cd {tmp_path} && {sys.executable} -m solo_infer models >&- 2>&- <&-; echo $?"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert (process.stdout, process.stderr) == ("0\n", "")


def test_existing_streams_are_kept():
    before = sys.stdin, sys.stdout, sys.stderr
    with standard_streams():
        assert (sys.stdin, sys.stdout, sys.stderr) == before


# --- No home directory


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """Simulate a user without a home directory and without an entry in the password database."""
    for name in ("HOME", "XDG_CACHE_HOME", environment.HOME, "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", os.fspath)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_cache_of_a_user_without_a_home_directory(no_home):
    home = environment.cache_home()
    assert home.parent == no_home and home.stat().st_mode & 0o777 == 0o700
    assert environment.cache_home() == home


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
@pytest.mark.parametrize("kind", ["link", "writable by others", "file"])
def test_a_directory_of_another_user_is_not_used(no_home, monkeypatch, kind):
    environment._process_home.cache_clear()
    usual = environment.cache_home()
    usual.rmdir()
    if kind == "link":
        usual.symlink_to(no_home)
    elif kind == "file":
        usual.write_text("")
    else:
        usual.mkdir()
        usual.chmod(0o777)
    home = environment.cache_home()
    environment._process_home.cache_clear()
    if kind == "file":
        assert home == usual  # writing to it fails with a CacheError
    else:
        assert home != usual and home.parent == no_home and home.stat().st_mode & 0o777 == 0o700


def test_no_directory_at_all(no_home, monkeypatch):
    def fail():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", fail)
    assert not environment.cache_home().exists()


@pytest.mark.parametrize("arguments", [["models"], ["info", "solo_r50_3x"], ["download", "solo_r50_3x"]])
def test_commands_of_a_user_without_a_home_directory(no_home, monkeypatch, capsys, arguments):
    monkeypatch.setenv(environment.OFFLINE, "1")
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == (1 if arguments[0] == "download" else 0)
    assert "Traceback" not in err and os.listdir(no_home) != []


def test_predict_falls_back_to_the_embedded_model(run, photos, no_home):
    code, out, err = run("predict", "photos/2.jpg", "--no-save", "--offline", "--device", "cpu")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "using 'tiny'" in err and "Traceback" not in err
    assert not os.path.exists("~")
