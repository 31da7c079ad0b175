"""The pages in docs are true: their commands run here, or at least parse where they need a card."""

import re
import shlex

import pytest
from docs.test_readme import mirror, run_command, street  # noqa: F401
from helpers.paths import ROOT

from solo_infer.cli.main import build_parser

PAGE = (ROOT / "docs" / "bi-v100.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- (\w+) -->\n)?```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def lines(mark):
    return [line for kind, name, text in BLOCKS if (kind, name) == (mark, "sh") for line in text.splitlines()]


def test_every_block_is_marked():
    assert {(mark, name) for mark, name, _ in BLOCKS} == {("run", "sh"), ("run", "python"), ("card", "sh")}


def test_commands_and_code_of_bi_v100(street, monkeypatch, capsys):  # noqa: F811
    pytest.importorskip("onnxruntime")
    for line in lines("run"):
        assert run_command(line, monkeypatch) == 0, (line, capsys.readouterr().err)
    drawn = street / "street_segmented.jpg"
    drawn.unlink()
    (code,) = (text for _, name, text in BLOCKS if name == "python")
    exec(compile(code, "bi-v100.md", "exec"), {})
    assert drawn.is_file()


@pytest.mark.parametrize("line", [line for line in lines("card") if "solo" in line])
def test_commands_for_a_card_are_ours(line):
    words = shlex.split(line)
    verb = words[words.index("solo_infer" if "solo_infer" in words else "solo-infer") + 1 :]
    assert build_parser().parse_args(verb).run
