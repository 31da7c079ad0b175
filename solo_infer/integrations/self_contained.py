"""ASGI middleware: pages that refer to nothing outside of their own address."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

# Browsers fetch nothing from other addresses, whatever scripts and styles ask for.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
_ELEMENT = re.compile(
    rb"<script\b[^>]*?\bhttps?://[^>]*>\s*</script>|<(?:link|meta)\b[^>]*?\bhttps?://[^>]*>"
)
_OWN = (b"//127.", b"//localhost", b"//[::1]")


def without_external_elements(page: bytes) -> bytes:
    """Return an HTML page without links, scripts and metadata that refer to another host."""
    return _ELEMENT.sub(lambda m: m[0] if any(host in m[0] for host in _OWN) else b"", page)


class SelfContained:
    """Middleware that removes external elements from HTML pages and adds a content security policy.

    Args:
        app: ASGI application.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        parts: list[bytes] = []

        async def forward(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                start["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
                if not _is_html(start):
                    await send(start)
            elif message["type"] == "http.response.body" and _is_html(start):
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    page = without_external_elements(b"".join(parts))
                    length = (b"content-length", str(len(page)).encode())
                    others = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                    await send({**start, "headers": [*others, length]})
                    await send({"type": "http.response.body", "body": page})
            else:
                await send(message)

        await self.app(scope, receive, forward)


def _is_html(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in start["headers"]
    )
