"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_gemma.runtime.safety import Filter

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a server listens, who may ask, and how much."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes a free one."""
    api_keys: tuple[str, ...] = ()
    """Any of these opens the server; without one everybody may ask."""
    requests_per_minute: int = 300
    """Of each key, or of each address where there are no keys; 0 is no limit."""
    max_waiting: int = 16
    """Prompts that wait for the model; more are refused with 503."""
    timeout: float = 300.0
    """Seconds for waiting and answering together."""

    max_body_bytes: int = 32 * MIB
    max_bodies_bytes: int = 128 * MIB
    """Of all bodies that are held at one time; more are refused with 503."""
    header_timeout: float = 10.0
    """Seconds for the head of a request."""
    body_timeout: float = 60.0
    """Seconds for the body of a request."""
    write_timeout: float = 30.0
    """Seconds that a client may read nothing of an answer that is sent."""
    max_connections: int = 512

    max_messages: int = 256
    max_prompt_chars: int = 400_000
    """Of all texts of a request: more than a context of 32K tokens holds."""
    max_image_bytes: int = 16 * MIB
    """Of an image as it is stored."""
    max_image_pixels: int = 25_000_000
    """Of all images of a request, decoded; each takes 3 bytes and twice that while it is read."""
    max_clip_seconds: float = 3600.0
    """Of a recording to transcribe or translate; a clip in a chat ends where the encoder's limit is."""

    filters: tuple[Filter, ...] = ()
    """Judge prompts and answers: see safety.py."""
    log_content: bool = False
    """Write prompts and answers to the log, too."""
