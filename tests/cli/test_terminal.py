"""Messages on the terminal."""

import io
import logging

from tqdm import tqdm

from solo_infer.cli.terminal import log_to_stderr


def test_messages_are_printed_above_progress_bars(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with log_to_stderr(verbose=True), tqdm(total=2, file=stream, disable=False) as bar:
        bar.update()
        logging.getLogger("solo_infer").info("message")
    assert "\rsolo-infer: message\n" in stream.getvalue()
