"""Progress bars: on terminals only, and never if they are switched off."""

import io

import pytest

from solo_infer.cli import terminal
from solo_infer.runtime.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "stream, options, is_shown",
    [(Terminal, {}, True), (io.StringIO, {}, False), (Terminal, {"enabled": False}, False)],
)
def test_bars_are_shown_on_terminals(stream, options, is_shown):
    output = stream()
    assert list(progress_bar(range(3), file=output, **options)) == [0, 1, 2]
    assert bool(output.getvalue()) == is_shown


@pytest.mark.parametrize("value, is_shown", [("1", False), ("0", True), ("", True)])
def test_environment_variable_hides_bars(monkeypatch, value, is_shown):
    monkeypatch.setenv("TQDM_DISABLE", value)
    with progress_bar(total=2, file=(output := Terminal())) as bar:
        bar.update()
    assert bool(output.getvalue()) == is_shown


def test_quiet_commands_hide_bars():
    with terminal.log_to_stderr(quiet=True):
        list(progress_bar(range(3), file=(output := Terminal())))
    assert output.getvalue() == ""
