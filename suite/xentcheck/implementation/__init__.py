"""What a file of implementations imports: the declarations, and the capabilities to subtract from."""

from xentcheck.implementation.adapter import Adapter
from xentcheck.implementation.declare import BrokenError, Deviation, Implementation, ImplementationError, with_matrix
from xentcheck.implementation.execute import load_file
from xentcheck.implementation.load import FOLDER, find, from_callable, names
from xentcheck.spec.capabilities import ARRAY_CAPABILITIES, CAPABILITIES, LINEAR_CAPABILITIES, LOGITS_CAPABILITIES

__all__ = [
    "ARRAY_CAPABILITIES",
    "CAPABILITIES",
    "FOLDER",
    "LINEAR_CAPABILITIES",
    "LOGITS_CAPABILITIES",
    "Adapter",
    "BrokenError",
    "Deviation",
    "Implementation",
    "ImplementationError",
    "find",
    "from_callable",
    "load_file",
    "names",
    "with_matrix",
]
