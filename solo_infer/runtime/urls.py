"""Parts of URLs for messages and reports."""

from __future__ import annotations

import re


def origin(address: str) -> str:
    """Return "https://host:port" of an HTTP address without credentials, "" for other addresses."""
    match = re.match(r"(https?://)(?:[^/@]*@)?([^/?#]+)", address)
    return match[1] + match[2] if match else ""


def redact_credentials(text: str) -> str:
    """Return a text with the user name and password of each URL replaced by "***"."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)
