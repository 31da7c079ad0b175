"""``solo-infer completion``: completion of commands, options and model names in a shell."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from typing import Any

from solo_infer.cli import options
from solo_infer.cli.terminal import print_text

SUMMARY = "Print the completion file of a shell"
EXAMPLES = (
    "solo-infer completion bash > ~/.local/share/bash-completion/completions/solo-infer",
    "solo-infer completion zsh > ~/.zfunc/_solo-infer",
    "solo-infer completion fish > ~/.config/fish/completions/solo-infer.fish",
)
_MODEL = "MODEL"  # metavar of options whose values are models

Parsers = Mapping[str, argparse.ArgumentParser]

_BASH = """\
_solo_infer() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{values}
        *)
            case "${{COMP_WORDS[1]}} $current" in
{options}
{positionals}
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _solo_infer solo-infer
"""
_ZSH = """\
#compdef solo-infer
_solo_infer() {{
    if (( CURRENT == 2 )); then
        compadd -- {commands}
        return
    fi
    case "$words[2] $words[CURRENT-1]" in
{values}
    esac
    case "$words[2] $words[CURRENT]" in
{options}
{positionals}
    esac
    _files
}}
if [ "$funcstack[1]" = "_solo_infer" ]; then
    _solo_infer "$@"
else
    compdef _solo_infer solo-infer
fi
"""


def add_parser(subparsers: Any) -> None:
    """Add the parser of the command."""
    parser = options.add_command(subparsers, "completion", SUMMARY, run, EXAMPLES)
    parser.add_argument("shell", choices=tuple(_WRITERS), help="shell that the file is for")
    parser.set_defaults(parsers=subparsers.choices)


def run(args: argparse.Namespace) -> int:
    """Print the completion file of a shell."""
    print_text(completion_file(args.shell, args.parsers).rstrip("\n"))
    return 0


def completion_file(shell: str, parsers: Parsers) -> str:
    """Return the completion file of a shell for the parsers of all commands."""
    return _WRITERS[shell](parsers)


def _values_of(action: argparse.Action) -> list[str]:
    """Return the values that an option or argument may have, none if they are free."""
    if action.metavar == _MODEL:
        from solo_infer.weights.manifest import load_manifest

        return sorted(load_manifest())
    return list(map(str, action.choices or ()))


def _options_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _positional_values(parser: argparse.ArgumentParser) -> list[str]:
    positionals = [action for action in parser._actions if not action.option_strings]
    return [value for action in positionals for value in _values_of(action)]


def _write_bash(parsers: Parsers) -> str:
    def line(pattern: str, words: list[str]) -> str:
        return f"        {pattern}) words={shlex.quote(' '.join(words))} ;;"

    return _BASH.format(commands=shlex.quote(" ".join(parsers)), **_cases(parsers, line))


def _write_zsh(parsers: Parsers) -> str:
    def line(pattern: str, words: list[str]) -> str:
        return f"    {pattern}) compadd -- {shlex.join(words)}; return ;;"

    return _ZSH.format(commands=shlex.join(parsers), **_cases(parsers, line))


def _cases(parsers: Parsers, line: Any) -> dict[str, str]:
    """Return the cases of a shell's case statements: values of options, options, values of arguments."""
    values, names, positionals = [], [], []
    for command, parser in parsers.items():
        for action in _options_of(parser):
            if words := _values_of(action):
                pattern = "|".join(f"{shlex.quote(f'{command} {name}')}" for name in action.option_strings)
                values.append(line(pattern, words))
        names.append(
            line(f"'{command} -'*", [name for item in _options_of(parser) for name in item.option_strings])
        )
        if words := _positional_values(parser):
            positionals.append(line(f"'{command} '*", words))
    return {"values": "\n".join(values), "options": "\n".join(names), "positionals": "\n".join(positionals)}


def _write_fish(parsers: Parsers) -> str:
    lines = []
    for command, parser in parsers.items():
        summary = (parser.description or "").rstrip(".")
        lines.append(
            f"complete -c solo-infer -n __fish_use_subcommand -f -a {command} -d {_fish_quoted(summary)}"
        )
        start = f"complete -c solo-infer -n '__fish_seen_subcommand_from {command}'"
        for action in _options_of(parser):
            short = [f"-s {name[1:]}" for name in action.option_strings if not name.startswith("--")]
            long = [f"-l {name[2:]}" for name in action.option_strings if name.startswith("--")]
            words = _values_of(action)
            value = f"-x -a {_fish_quoted(' '.join(words))}" if words else "-r" if action.nargs != 0 else ""
            help_text = re.sub(r"\s*\(default: .*?\)", "", action.help or "")
            lines.append(
                " ".join(filter(None, [start, *short, *long, value, f"-d {_fish_quoted(help_text)}"]))
            )
        if words := _positional_values(parser):
            lines.append(f"{start} -a {_fish_quoted(' '.join(words))}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_WRITERS = {"bash": _write_bash, "zsh": _write_zsh, "fish": _write_fish}
