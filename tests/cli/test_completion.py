"""``solo-infer completion``, in the shells that are installed."""

import argparse
import shutil
import subprocess

import pytest

from solo_infer.cli.main import COMMANDS, build_parser
from solo_infer.weights.manifest import load_manifest

pytest_plugins = ["helpers.command_line_fixtures"]


def parsers():
    (action,) = [item for item in build_parser()._actions if isinstance(item, argparse._SubParsersAction)]
    return action.choices


@pytest.fixture
def complete(run, tmp_path):
    """Return a function that returns the completions of a command line in bash."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    code, text, err = run("completion", "bash")
    assert (code, err) == (0, "")
    (tmp_path / "file").write_text(text)

    def completions(*words):
        line = " ".join(f"'{word}'" for word in words)
        script = f"source {tmp_path / 'file'}; COMP_WORDS=(solo-infer {line}); COMP_CWORD={len(words)}; "
        script += '_solo_infer; printf "%s\\n" "${COMPREPLY[@]}"; complete -p solo-infer >/dev/null'
        process = subprocess.run(
            ["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=30, cwd=tmp_path
        )
        assert (process.returncode, process.stderr) == (0, "")
        return process.stdout.split()

    return completions


def test_commands(complete):
    assert complete("") == list(COMMANDS)
    assert complete("pre") == ["predict"]
    assert complete("x") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_options(complete, command):
    options = {name for item in parsers()[command]._actions for name in item.option_strings}
    assert set(complete(command, "--")) == {name for name in options if name.startswith("--")}
    assert set(complete(command, "-")) == options >= {"-q", "--quiet", "--verbose"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("predict", "--dtype", "b"), ["bfloat16"]),
        (("train", "photo.jpg", "--dtype", ""), ["float32", "float16", "bfloat16", "auto"]),
        (("eval", "--nms", "g"), ["greedy"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("train", "--output", ""), []),  # the shell completes files
        (("predict", "pho"), []),
    ],
)
def test_values(complete, words, expected):
    assert complete(*words) == expected


@pytest.mark.parametrize("words", [("predict", "--model", ""), ("info", ""), ("download", "")])
def test_models(complete, words):
    assert set(complete(*words)) >= set(load_manifest())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_files_name_every_command_and_are_valid(run, shell, tmp_path):
    code, text, _ = run("completion", shell)
    assert (
        code == 0 and all(command in text for command in COMMANDS) and "--dtype" in text or "-l dtype" in text
    )
    (tmp_path / "file").write_text(text)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: only the names were checked")
    check = subprocess.run([shell, "-n", tmp_path / "file"], capture_output=True, text=True, timeout=30)
    assert (check.returncode, check.stderr) == (0, "")


def test_unknown_shells_are_refused(run):
    code, _, err = run("completion", "tcsh")
    assert code == 2 and "bash" in err
