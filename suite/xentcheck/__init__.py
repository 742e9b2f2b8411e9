"""xentcheck: is this cross entropy right, and what does it cost?"""

from xentcheck.capture_batch import capture

__all__ = ["capture"]
