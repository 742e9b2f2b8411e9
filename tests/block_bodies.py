"""Cases whose truth is made in blocks: each option of the loss, and a linear layer."""

BODIES = [
    "logits: {shape: [40, 50]}, target: {ignore: {fraction: 0.3}}",
    "logits: {shape: [40, 50], scale: 10}, reduction: sum, dtype: bfloat16",
    "logits: {shape: [40, 50]}, reduction: none, upstream: per-position, target: {ignore: {every: 3}}",
    "logits: {shape: [2, 7, 5, 4]}, weight: random, ignore_index: 255, target: {ignore: {suffix: 9}}",
    "logits: {shape: [40, 50]}, label_smoothing: 0.1, weight: random, target: {ignore: first}",
    "logits: {shape: [40, 50], scale: 30}, dtype: float64, upstream: -3, reduction: sum",
]
LINEAR = [
    "logits: {shape: [30, 20], scale: 2}, linear: {features: 6, bias: true}, target: {ignore: {fraction: 0.3}}",
    "logits: {shape: [30, 20]}, linear: {features: 6}, reduction: none, upstream: per-position, target: {ignore: {every: 3}}",
    "logits: {shape: [30, 20]}, linear: {features: 6}, weight: random, label_smoothing: 0.1, dtype: bfloat16",
]
