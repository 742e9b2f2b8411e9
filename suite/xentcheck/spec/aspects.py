"""What a case asks about an answer: the aspects, and among them the relations between batches."""

from __future__ import annotations

from typing import Literal, get_args

Relation = Literal[
    "deletion", "poisoning", "permutation", "class_permutation", "shift", "splitting", "linearity", "zero_sum", "reductions"
]  # fmt: skip
RELATIONS: tuple[Relation, ...] = get_args(Relation)
Aspect = Literal["loss", "gradient", "shape", "rejection", "purity", Relation]
ASPECTS: tuple[Aspect, ...] = ("loss", "gradient", "shape", "rejection", "purity", *RELATIONS)
