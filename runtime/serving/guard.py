"""Who may ask: keys, and what keeps web pages of strangers away from a server on this machine."""

from __future__ import annotations

import hashlib
import hmac
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_gemma.runtime.serving.journal import client_hash
from edge_gemma.runtime.serving.problems import Problem

OPEN = ("/", "/health")  # need no key


class Guard:
    """Refuses, in this order:

    - a Host that is a name which is not this machine's, where no key is needed: by DNS rebinding a page of
      a stranger reaches a server on loopback under the stranger's own name, never under an address;
    - an Origin other than the Host: a browser sends it for pages of other sites. There are no CORS headers;
    - a missing or unknown bearer key.
    """

    def __init__(self, app: ASGIApp, host: str, keys: Sequence[str]) -> None:
        self.app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        self._keys = {_digest(key): client_hash(key) for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry, headers = scope["state"]["entry"], Headers(scope=scope)
        entry.client = client_hash(scope["client"][0] if scope["client"] else "")
        try:
            self._check_site(headers)
            if self._keys and scope["path"] not in OPEN:
                entry.client = self._check_key(headers)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_site(self, headers: Headers) -> None:
        host = headers.get("host", "")
        name = _hostname(host)
        if not self._keys and name not in self._names and not _is_address(name):
            raise Problem(
                403,
                "the Host is not a name of this machine: use its address, or start the server with a key",
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is not None and _split(origin).netloc.lower() != host.lower():
            raise Problem(403, "this server does not answer pages of other sites", code="foreign_origin")

    def _check_key(self, headers: Headers) -> str:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        # all of them are compared, and digests in constant time, so that time tells nothing of a key
        found = [client for digest, client in self._keys.items() if hmac.compare_digest(digest, given)]
        if scheme.lower() != "bearer" or not found:
            raise Problem(
                401,
                "a key is needed and this is none: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return found[0]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _hostname(host: str) -> str:
    """The name in a Host header, lower case, without port and brackets; "" where there is none."""
    return _split(f"//{host}").hostname or ""


def _split(url: str) -> SplitResult:
    """Its parts; those of an empty one where it is malformed."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
