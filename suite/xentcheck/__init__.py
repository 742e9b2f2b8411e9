"""xentcheck: is this cross entropy right, and what does it cost?"""

from xentcheck.capture import capture

__all__ = ["capture"]
