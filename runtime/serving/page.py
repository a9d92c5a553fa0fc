"""The web page: one file, which needs nothing but this server and whose own script alone may run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = Path(__file__).with_name("page.html")


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers. Its policy admits the script and the style in it by their hashes."""
    html = PAGE.read_bytes()
    policy = (
        "default-src 'none'",
        f"script-src {_hash(html, b'script')}",
        f"style-src {_hash(html, b'style')}",
        "connect-src 'self'",
        "img-src blob: data:",  # previews; the icon
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return html, {
        "Content-Security-Policy": "; ".join(policy),
        "Permissions-Policy": "microphone=(self)",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


def _hash(html: bytes, tag: bytes) -> str:
    """What is inside the only element of this kind, as a source in a Content-Security-Policy."""
    (inside,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"


async def show(request: Request) -> Response:
    html, headers = page()
    return Response(html, media_type="text/html", headers=headers)


routes = [Route("/", show)]
