"""Settings of pictures. Imports nothing."""

DISPLAY_THRESHOLD = 0.3  # default score that an instance needs to be drawn and counted
