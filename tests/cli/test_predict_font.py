"""``solo-infer predict --font``."""

from helpers.command_line import assert_clear

pytest_plugins = ["helpers.command_line_fixtures"]


def test_the_font_is_checked_before_the_first_image(run, photos, saved):
    code, out, err = run("predict", "photos", "--model", saved, "--font", "gone.ttf")
    assert (code, out) == (1, "")
    assert_clear(err, "gone.ttf", "Expected a scalable font")
