"""Where the suite is, and ``--impl`` for the losses of ``fakes``."""

from pathlib import Path

import fakes
import xentcheck

SUITE = Path(xentcheck.__file__).resolve().parents[1]
ROOT = SUITE.parent
FAKES = Path(fakes.__file__)


def impl(*names):
    """``--impl`` for these functions of ``fakes``."""
    return ",".join(f"{FAKES}:{name}" for name in names)
