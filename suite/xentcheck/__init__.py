"""xentcheck: is this cross entropy right, and what does it cost?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xentcheck.spec.capture import capture

__all__ = ["capture"]


def __getattr__(name: str) -> Any:
    if name == "capture":  # only now, since it imports torch, which takes seconds
        from xentcheck.spec.capture import capture

        return capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
