"""maskedce, or functions that say that it is not installed."""

import sys
from pathlib import Path

_searched = sys.path[:]
# While a file of this folder is loaded, the folder stands first, and maskedce.py in it has the name of the package.
sys.path[:] = [path for path in _searched if Path(path).resolve() != Path(__file__).resolve().parent]
try:
    from maskedce import __version__ as VERSION
    from maskedce import linear_masked_cross_entropy, masked_cross_entropy

    UNAVAILABLE = ""
except ModuleNotFoundError as error:
    if error.name != "maskedce":
        raise
    VERSION, UNAVAILABLE = "", "maskedce is not installed: pip install maskedce"

    def masked_cross_entropy(*tensors, **options):
        raise RuntimeError(UNAVAILABLE)

    linear_masked_cross_entropy = masked_cross_entropy
finally:
    sys.path[:] = _searched

CONVENTIONS = {
    "empty_mean": "zero",
    "zero_times_infinity": "zero",
    "int32_target": "taken",
    "half_loss_dtype": "input",
    "sums": "careful",
    "half_rounding": "once",
}
