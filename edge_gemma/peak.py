"""The peak memory of this process, and of stretches of its life."""

from __future__ import annotations

import gc
from pathlib import Path

from edge_gemma.memory import peak_resident_bytes, release_free_memory, resident_bytes

CLEAR = Path("/proc/self/clear_refs")
SET_BACK = "5"  # written there, VmHWM begins anew at what is resident now: see proc(5)

_watches: list[Watch] = []  # that are open
_discarded = 0  # the highest record that was set back


def process_peak() -> int:
    """Highest resident memory of this process so far, in bytes, whatever was set back meanwhile."""
    return max(_discarded, peak_resident_bytes())


class Watch:
    """The highest resident memory from its making to its closing, in bytes.

    Watches may overlap: the record that one sets back is kept for the others. Where the system does not let
    us set it back, a peak below the record of before cannot be seen; `blind_to` says up to where.
    """

    def __init__(self) -> None:
        gc.collect()
        release_free_memory()  # what is free inside the allocator would take in growth unseen
        self.blind_to = 0 if _set_back() else peak_resident_bytes()
        self.before = resident_bytes()
        self.peak = self.before
        _watches.append(self)

    @property
    def growth(self) -> int:
        """By how much the peak exceeds what was resident before."""
        return self.peak - self.before

    def close(self) -> None:
        """Take the last look; `peak` is final."""
        self.look()
        _watches.remove(self)

    def look(self) -> None:
        """Bring `peak` up to date."""
        record = peak_resident_bytes()
        if record > self.blind_to:
            self.peak, self.blind_to = max(self.peak, record), 0
        else:
            self.peak = max(self.peak, resident_bytes())


def _set_back() -> bool:
    """Set the system's record back to what is resident now; whether it let us."""
    global _discarded
    _discarded = process_peak()
    for watch in _watches:
        watch.look()
    try:
        CLEAR.write_text(SET_BACK)
    except OSError:
        return False
    return True
