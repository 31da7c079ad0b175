"""``solo-infer doctor``."""

import json

pytest_plugins = ["helpers.command_line_fixtures"]


def test_doctor(run, monkeypatch):
    report = {"problems": [{"problem": "p", "fix": "f"}]}
    monkeypatch.setattr("solo_infer.diagnostics.doctor.collect_report", lambda: report)
    monkeypatch.setattr("solo_infer.diagnostics.doctor.format_report", lambda report: "as text")
    assert run("doctor") == (0, "as text\n", "")
    code, out, err = run("doctor", "--json")
    assert (code, json.loads(out), err) == (0, report, "")
