"""What an answer cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(kw_only=True)
class Statistics:
    """Counts, times and memory of one answer; filled while it is generated."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, computed before: in the KV cache or in a stored state
    generated_tokens: int = 0
    drafted_tokens: int = 0  # by speculation, and fed to be verified
    accepted_tokens: int = 0  # of them, those that became part of the answer
    images: int = 0  # encoded for this answer
    audio_seconds: float = 0.0  # encoded for this answer
    encode_seconds: float = 0.0  # of images and audio, loading the encoders included
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0  # after the first token
    time_to_first_token: float = 0.0  # seconds from the call, encoding included
    peak_memory_bytes: int = 0  # of the process (VmHWM), loading included
    rows: int = 0  # embedding records used
    rows_read: int = 0  # of them, read from storage
    bytes_read: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        return _rate(self.generated_tokens - 1, self.decode_seconds)

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens; 0 without any."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    def add(self, answer: Statistics) -> None:
        """Count another answer in: one of several that a request takes."""
        first = self.time_to_first_token or answer.time_to_first_token
        peak = max(self.peak_memory_bytes, answer.peak_memory_bytes)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(answer, field.name))
        self.time_to_first_token, self.peak_memory_bytes = first, peak

    def to_dict(self) -> dict[str, float]:
        """All figures, the three rates included."""
        return asdict(self) | {
            "prefill_tokens_per_second": round(self.prefill_tokens_per_second, 2),
            "decode_tokens_per_second": round(self.decode_tokens_per_second, 2),
            "acceptance_rate": round(self.acceptance_rate, 4),
        }


def _rate(count: int, seconds: float) -> float:
    return max(count, 0) / seconds if seconds > 0 else 0.0
