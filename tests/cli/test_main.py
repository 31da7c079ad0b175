"""The command line as a whole: parsers, help, usage errors, exit codes, messages."""

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import assert_clear
from helpers.paths import ROOT

from solo_infer.cli import terminal
from solo_infer.cli.main import COMMANDS, EXAMPLES, GROUPS, build_parser
from solo_infer.errors import ImageError
from solo_infer.segmenters import auto

pytest_plugins = ["helpers.command_line_fixtures"]

HEAVY_PACKAGES = {"torch", "torchvision", "numpy", "PIL", "huggingface_hub", "tqdm"}
NAMES = [
    *("predict", "batch", "merge", "demo", "train", "eval", "benchmark", "models", "info"),
    *("download", "convert", "export", "doctor", "verify"),
    "completion",
]


def command_parsers():
    """Return the parser of each command by name."""
    (subparsers,) = (action for action in build_parser()._actions if hasattr(action, "add_parser"))
    return subparsers.choices


def examples_of(epilog):
    """Return the command lines of an epilog, without the name of the program."""
    lines = epilog.replace("\\\n", " ").splitlines()
    for line in lines:
        if line.startswith("  "):
            words = shlex.split(line)
            program = "solo-infer" if "solo-infer" in words else "solo_infer"
            end = words.index(">") if ">" in words else None
            yield words[words.index(program) + 1 : end]


# --- Parsers and help


def test_commands_and_their_groups():
    assert sorted(COMMANDS) == sorted(NAMES) == sorted(command_parsers())
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(NAMES)


def test_help_imports_no_heavy_package():
    code = (
        "import sys\n"
        "from solo_infer.cli.main import main\n"
        f"for name in {NAMES!r}:\n"
        "    assert main([name, '--help']) == 0\n"
        "assert main(['--help']) == main(['--version']) == 0\n"
        f"heavy = {HEAVY_PACKAGES!r} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    for name in NAMES:
        assert f"usage: solo-infer {name}" in process.stdout


def test_help_of_the_program(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: solo-infer COMMAND [options]\n")
    positions = [out.index(f"\n{title}:\n") for title in GROUPS]
    assert positions == sorted(positions)
    for name in NAMES:
        assert len(re.findall(rf"^  {name} +[A-Z]", out, re.MULTILINE)) == 1
    assert "examples:" in out and f"  {EXAMPLES[0]}\n" in out
    for arguments in examples_of(build_parser().epilog):
        assert build_parser().parse_args(arguments).run


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: solo-infer {name} ")
    assert "-q, --quiet" in out and "-v, --verbose" in out
    assert re.search(rf"\nexamples?:\n  .*solo.infer {name}", out)
    assert "verb " not in out
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize("name", NAMES)
def test_examples_parse(name):
    parser = command_parsers()[name]
    examples = list(examples_of(parser.epilog))
    assert examples
    for arguments in examples:
        assert arguments[0] == name
        assert build_parser().parse_args(arguments).run.__module__ == COMMANDS[name]


@pytest.mark.parametrize("name", NAMES)
def test_options_follow_the_common_vocabulary(name):
    """An option means the same in every command, and no command has one of an earlier spelling."""
    actions = command_parsers()[name]._actions
    options = {option: action for action in actions for option in action.option_strings}
    assert {"--help", "--verbose", "--quiet", "-h", "-v", "-q"} <= set(options)
    outdated = {"--models", "--dtypes", "--batch-sizes", "--size", "--image-size", "--autocast", "--body"}
    outdated |= {"--no-pictures", "--onnx", "--against", "--chart"}
    assert not outdated & set(options)
    for option, action in options.items():
        assert action.help, option
    if "--json" in options:
        assert options["--json"].nargs == 0
        assert "machine-readable JSON to standard output" in options["--json"].help
    if "--output" in options:
        assert options["--output"].metavar in ("DIR", "FILE")
    for option in ("--save-json", "--save-chart", "--image-ids"):
        if option in options:
            assert options[option].metavar == "FILE"
    if "--input-size" in options:
        assert options["--input-size"].metavar == ("H", "W")
    if "--dtype" in options:
        *choices, last = options["--dtype"].choices
        assert choices == ["float32", "float16", "bfloat16"] and last == "auto"
    if "--device" in options:
        assert options["--device"].default == "auto"
    positional = [action.dest for action in actions if not action.option_strings]
    has_positional_model = name in ("info", "convert", "export", "download")
    assert ("model" in positional) == has_positional_model
    with_model = ("predict", "batch", "demo", "eval", "train", "benchmark", "verify")
    assert ("--model" in options) == (name in with_model)


# --- Usage errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND"),
        (["segment"], "segment"),
        (["predict"], "IMAGE"),
        (["predict", "a.jpg", "--batch-size", "0"], "expected an integer of at least 1, got '0'"),
        (["predict", "a.jpg", "--batch-size", "two"], "got 'two'"),
        (["predict", "a.jpg", "--min-score", "30"], "expected a number in 0..1, got '30'"),
        (["predict", "a.jpg", "--min-score", "nan"], "got 'nan'"),
        (["predict", "a.jpg", "--dtype", "float64"], "float64"),
        (["predict", "a.jpg", "--nms", "soft"], "soft"),
        (["predict", "a.jpg", "--nms-iou", "2"], "expected a number in 0..1"),
        (["predict", "a.jpg", "--image-ids", "a.json"], "--save-json"),
        (["predict", "a.jpg", "--quiet", "--verbose"], "not allowed with argument"),
        (["predict", "a.jpg", "--batch", "2"], "unrecognized arguments: --batch"),
        (["download"], "MODEL"),
        (["convert", "a.pth"], "--output"),
        (["export", "a.pth", "--output", "a.onnx", "--opset", "11"], "--input-size"),
        (["info", "tiny", "--input-size", "0", "9"], "at least 1, got '0'"),
        (["info", "tiny", "--depth", "-1"], "at least 0, got '-1'"),
    ],
)
def test_usage_errors(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_clear(err, message)


def test_version(run):
    from solo_infer import __version__

    assert run("--version") == (0, f"solo-infer {__version__}\n", "")


# --- Errors and messages


@pytest.mark.parametrize(
    "redirection, code, message",
    [("| true; exit ${PIPESTATUS[0]}", 1, ""), ("> /dev/full", 1, "No space left on device")],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="not a Linux system")
def test_output_that_cannot_be_written(redirection, code, message):
    command = f"{shlex.quote(sys.executable)} -m solo_infer models {redirection}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert process.returncode == code
    assert_clear(process.stderr, message)
    assert bool(process.stderr) == bool(message)


@pytest.fixture
def loading_logs(monkeypatch):
    """Make every loading of a model log an info and a warning, and fail."""

    def load(name, **options):
        logging.getLogger("solo_infer.test").info("an info")
        logging.getLogger("solo_infer.test").warning("a warning")
        raise ImageError("end")

    monkeypatch.setattr(auto, "load_model", load)


def test_verbose_and_quiet_set_the_log_level_and_restore_it(run, photos, loading_logs):
    logger = logging.getLogger("solo_infer")
    before = (list(logger.handlers), logger.level, dict(os.environ))
    predict = ("predict", "photos/1.png")
    assert run(*predict)[2] == "solo-infer: a warning\nsolo-infer: ImageError: end\n"
    assert "solo-infer: an info\n" in run(*predict, "-v")[2]
    assert run(*predict, "-q")[2] == "solo-infer: ImageError: end\n"
    assert (list(logger.handlers), logger.level, dict(os.environ)) == before


def test_quiet_hides_messages_but_not_errors(capsys):
    with terminal.log_to_stderr(quiet=True):
        terminal.info("a message")
        terminal.print_error("an error")
        assert os.environ["TQDM_DISABLE"] == os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    terminal.info("another message")
    assert capsys.readouterr().err == "solo-infer: an error\nsolo-infer: another message\n"
    assert "TQDM_DISABLE" not in os.environ


@pytest.mark.parametrize("error", [ImportError("no torchvision"), OSError(28, "No space left on device")])
def test_errors_of_the_machine_point_to_the_doctor(run, photos, monkeypatch, error):
    def load(name, **options):
        raise error

    monkeypatch.setattr(auto, "load_model", load)
    code, _, err = run("predict", "photos/1.png")
    assert code == 1
    assert_clear(err, f"{type(error).__name__}: {error}", "solo-infer doctor")
    assert "Traceback" in run("predict", "photos/1.png", "--verbose")[2]


# --- JSON arrays


def test_json_array_is_complete_after_ctrl_c_only(capsys):
    for elements, error, expected in (
        ([], None, "[]\n"),
        ([{"a": 1}, {"b": 2}], None, '[\n{"a": 1},\n{"b": 2}\n]\n'),
        ([1], KeyboardInterrupt, "[\n1\n]\n"),
        ([1], ValueError, "[\n1"),
        ([], ValueError, ""),
    ):
        try:
            with terminal.JsonArray() as array:
                for element in elements:
                    array.add(element)
                if error:
                    raise error
        except (KeyboardInterrupt, ValueError) as raised:
            assert type(raised) is error
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("command", [["info"], ["convert"], ["download"], ["export"], ["benchmark"]])
def test_unknown_model(run, command, tmp_path):
    output = tmp_path / "out"
    arguments = {
        "convert": ["solo_r50_4x", "--output", output],
        "export": ["solo_r50_4x", "--output", output.with_suffix(".onnx")],
        "benchmark": ["a.jpg", "--model", "solo_r50_4x"],
    }
    code, out, err = run(*command, *arguments.get(command[0], ["solo_r50_4x"]))
    assert (code, out) == (1, "")
    assert_clear(err, "UnknownModelError", "Did you mean 'solo_r50_")
    assert not output.exists()
