"""Entry point of the command line: parse the arguments, run a command, turn errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from solo_infer._version import __version__
from solo_infer.cli.options import format_examples
from solo_infer.cli.suggestions import CommandParser, ProgramParser
from solo_infer.cli.terminal import log_to_stderr, print_error, standard_streams
from solo_infer.errors import SoloInferError
from solo_infer.runtime.cpu import openmp_settings
from solo_infer.runtime.environment import set_environment
from solo_infer.runtime.messages import describe_error

INTERRUPTED = 130  # exit code after ctrl-C, as in shells

# Each module has SUMMARY, add_parser(subparsers) and run(args). It imports heavy packages in run only.
COMMANDS = {
    "predict": "solo_infer.cli.predict",
    "batch": "solo_infer.cli.batch",
    "merge": "solo_infer.cli.merge",
    "demo": "solo_infer.cli.demo",
    "eval": "solo_infer.cli.eval",
    "benchmark": "solo_infer.cli.benchmark",
    "train": "solo_infer.cli.train",
    "models": "solo_infer.cli.models",
    "info": "solo_infer.cli.info",
    "download": "solo_infer.cli.download",
    "convert": "solo_infer.cli.convert",
    "export": "solo_infer.cli.export",
    "doctor": "solo_infer.cli.doctor",
    "verify": "solo_infer.cli.verify",
    "completion": "solo_infer.cli.completion",
}
GROUPS = {
    "run and measure models": ("predict", "batch", "merge", "demo", "eval", "benchmark"),
    "train models": ("train",),
    "manage models": ("models", "info", "download", "convert", "export"),
    "check this machine": ("doctor", "verify"),
    "set up a shell": ("completion",),
}
HINT = "Run 'solo-infer COMMAND --help' for the options of a command."
EXAMPLES = (
    "solo-infer predict street.jpg",
    "solo-infer predict photos --model decoupled_light_r50_3x --output segmented",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments. Defaults to those of the process.

    Returns:
        The exit code: 0, 1 for errors, 2 for usage errors, 130 for ctrl-C.
    """
    with standard_streams():
        try:
            args = build_parser().parse_args(arguments)
        except SystemExit as stop:  # raised by argparse after --help and after usage errors
            return int(stop.code or 0)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    # OpenMP reads its settings when torch is imported. Programs that have imported it keep their own.
    settings = {} if "torch" in sys.modules else openmp_settings(os.environ)
    with set_environment(settings), log_to_stderr(verbose=args.verbose, quiet=args.quiet):
        try:
            code: int = args.run(args)
            sys.stdout.flush()  # raises an OSError here rather than at interpreter exit
            return code
        except SoloInferError as error:
            print_error(error)
            return 1
        except KeyboardInterrupt:
            print_error("interrupted")
            return INTERRUPTED
        except BrokenPipeError:  # the reader of standard output has closed it, e.g. "| head"
            _discard_stdout()
            return 1
        except Exception as error:
            problem = _machine_problem(error)
            if not problem:  # a defect of this library, of which the traceback is needed
                raise
            _discard_stdout()
            logging.getLogger(__name__).info("Traceback of the error:", exc_info=True)
            print_error(problem)
            return 1


def _machine_problem(error: Exception) -> str:
    """Return a description of an error that the machine has caused, "" for other errors.

    Broken or mismatched packages raise errors of any type, wherever they are used.
    """
    advice = "run 'solo-infer doctor' to check this machine"
    if not (isinstance(error, OSError) and error.errno):  # not one of files, such as a full disk
        from solo_infer.diagnostics.packages import describe_broken_package

        package = describe_broken_package()
        if package:
            return f"{package}; {advice}"
    return f"{describe_error(error)}; {advice}" if isinstance(error, (ImportError, OSError)) else ""


def _discard_stdout() -> None:
    """Discard buffered output that cannot be written; the interpreter would fail with it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; ``run`` of the parsed arguments is the command's function."""
    modules = {name: importlib.import_module(module) for name, module in COMMANDS.items()}
    lines = ["Instance segmentation with SOLO and YOLACT."]
    for title, names in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<11}{modules[name].SUMMARY}" for name in names)]
    parser = ProgramParser(
        prog="solo-infer",
        usage="solo-infer COMMAND [options]",
        description="\n".join(lines),
        epilog=f"{format_examples(EXAMPLES)}\n\n{HINT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"solo-infer {__version__}")
    # The description lists the commands by group, which argparse cannot.
    subparsers = parser.add_subparsers(
        parser_class=CommandParser,
        prog="solo-infer",
        required=True,
        metavar="COMMAND",
        help=argparse.SUPPRESS,
    )
    for module in modules.values():
        module.add_parser(subparsers)
    parser.set_commands(subparsers.choices)
    return parser
