"""What a call gave, as records that pass between processes. Imports no torch, so that a worker without it can make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray


@dataclass(frozen=True)
class Raised:
    """An exception: where (call or backward), its type and its text."""

    phase: str
    type: str
    text: str

    def __str__(self) -> str:
        first_line = self.text.strip().partition("\n")[0]
        return f"{self.type} in the {'call' if self.phase == 'call' else 'backward pass'}: {first_line}"


@dataclass(frozen=True)
class Answer:
    """What one call returned. Values as float64, which holds every dtype exactly; None for what was missing."""

    loss: Array | None = None
    loss_type: str = ""  # a dtype of torch, or what was returned instead of a tensor that can be read
    requires_grad: bool = False  # of the loss
    gradient: Array | None = None
    gradient_type: str = ""
    second: Array | None = None
    # Further gradients, by argument, with their dtypes.
    others: Mapping[str, tuple[Array, str]] = field(default_factory=dict)
    raised: Raised | None = None
    # What is there instead of a gradient that can be read: by quantity, such as gradient or gradient of linear_weight.
    unreadable: Mapping[str, str] = field(default_factory=dict)
    # Where the batch was padded with ignored samples: a quantity (loss or gradient) that is not zero there, and at which sample.
    nonzero_padding: tuple[str, int] | None = None
    # The loss itself, whose memory belongs to the caller; never sent to another process.
    tensor: Tensor | None = field(default=None, metadata={"sent": False})


@dataclass(frozen=True)
class Observation:
    """One implementation on one batch: the answer, the answer to a second call, and what the calls changed."""

    first: Answer
    again: Answer | None
    changed: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """No observation, because of what the implementation did to its process. status: ``crash``, ``timeout`` or ``error``."""

    status: str
    message: str
