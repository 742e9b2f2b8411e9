"""The modes that a case can ask in, and what each of them means for a case. ``modes`` holds how each is carried out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModeFacts:
    """has_gradient: whether a gradient is asked for. capability: what an implementation must offer to be asked. differentiates: whether the
    mode takes the gradient inside the call, so that without it there is no loss either. takes_linear: whether a fused linear loss can be
    asked in it. is_timed: whether its cost can be measured."""

    has_gradient: bool = True
    capability: str | None = None
    differentiates: bool = False
    takes_linear: bool = False
    is_timed: bool = False


MODES: dict[str, ModeFacts] = {
    "eager": ModeFacts(takes_linear=True, is_timed=True),
    "compile": ModeFacts(capability="compile", is_timed=True),
    "autocast": ModeFacts(capability="autocast"),
    "no_grad": ModeFacts(has_gradient=False, takes_linear=True, is_timed=True),
    "inference_mode": ModeFacts(has_gradient=False, takes_linear=True),
    "detached": ModeFacts(has_gradient=False),
    "func_grad": ModeFacts(capability="func_grad", differentiates=True),
    "vmap": ModeFacts(capability="vmap", differentiates=True),
    "double_backward": ModeFacts(capability="double_backward", differentiates=True),
    "twice": ModeFacts(takes_linear=True),
    "two_losses": ModeFacts(),
    "edited": ModeFacts(),
    "accumulated": ModeFacts(),
    "deterministic": ModeFacts(),
}


def micro_batches(samples: int) -> list[slice]:
    """The samples of a batch in three unequal parts, as mode accumulated calls them."""
    bounds = sorted({0, 1, 1 + (samples - 1) // 3, samples})
    return [slice(start, stop) for start, stop in zip(bounds, bounds[1:])]  # noqa: B905, RUF007
