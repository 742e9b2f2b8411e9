"""Every number by which a route or a block size is chosen, each with its unit and its reason.

Those marked "measured" are where two ways took the same time on one thread and on several, rounded to a power of two.
``python tests/studies/maskedce_thresholds.py NAME ...`` times both ways below and above a threshold, side by side. Those
marked "accuracy" bound a rounding error instead, and those marked "hardware" are what the machine is built like.

They are looked up where they are used, as attributes of this module, so that a test or a measurement may change them.
"""

import torch

# --- route_small: torch's own loss for few logits on the CPU

REGISTER_BYTES = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 16)
"""Bytes of a vector register; hardware."""

SHORT_ROW_BYTES = REGISTER_BYTES
"""Bytes of a row of classes in the working dtype; a shorter one does not fill a register, and torch's softmax is up to ten
times as slow along it as across it. Measured."""

NEVER_SHORT_CLASSES = 32
"""Classes that fill every CPU's vector register, whatever the dtype; asked first, because it takes less. Hardware."""

SMALL_BYTES = 2**23
"""Bytes of logits in the working dtype with a gradient; below, blocks cost more Python than they save memory. Measured."""

SMALL_FACTOR = 4
"""Times ``SMALL_BYTES``, without a gradient or with few classes in the working dtype: blocks save less there. Measured."""

SMALL_LOGITS = 2**18
"""Logits in short rows, or of a half type with a gradient or many classes: their copies make blocks pay earlier. Measured."""

FEW_CLASSES_IN_ROWS, FEW_CLASSES_IN_PLANES = 64, 16
"""Classes, last in (N, C) or second in (N, C, d1, ...): with fewer, what blocks do for each position outweighs the rest.
Measured."""

TRANSPOSED_BYTES = 2**15
"""Bytes of logits in short rows for each thread, from which laying them out with the classes first pays. Measured."""

LISTED_TARGETS = 48
"""Targets, up to which listing them to look for ignored ones takes less than their minimum does. Measured."""

SUMMED_CLASSES = 512
"""Numbers that torch's softmax may add up one after another: the loss is then off by 3e-5 at most. Accuracy."""

SUMMED_ROW_BYTES = SUMMED_CLASSES * REGISTER_BYTES
"""Bytes of a row with no more than ``SUMMED_CLASSES`` for each lane of a register; a first, quicker question. Accuracy."""

SMOOTHED_CLASSES_IN_ROWS, SMOOTHED_CLASSES_IN_PLANES = 256, 64
"""Classes that torch's own backward pass adds up well enough under label smoothing or class probabilities. Accuracy."""

# --- blockwise: many logits on the CPU

BLOCK_LOGITS = 2**20
"""Logits of a block for each thread, which stay in the cache from one operation to the next. Measured."""

FAR_MEAN = 32
"""Distance from 0 of the mean of a position's logits, beyond which its rounding would show in a smoothed loss. Accuracy."""

GAP_PARTS = 32
"""Parts of all rows: a stretch of ignored rows longer than one of them is left out of the blocks. Measured."""

SCATTERED_SHARE = 0.4
"""Share of valid rows in the stretches, below which gathering them costs less than working on all. Measured."""

SPARSE_PARTS = 10
"""Parts of all rows: where fewer than one of them is written, huge pages would be mostly unused. Measured."""

# --- buffers

HUGE_PAGE = 2**21
"""Bytes of a huge page of Linux on x86-64; hardware."""

MAPPED_BYTES = 2**25
"""Bytes of a buffer, from which huge pages save more than malloc's reuse of warm memory does. Measured."""

# --- the linear loss

ALL_LOGITS = 2**21
"""Logits, or elements of a matrix in a half type, below which torch.compile holds them all and fuses. Measured."""

SMALLEST_CHUNK, LARGEST_CHUNK = 2**23, 2**24
"""Logits or features held at a time: below, packing the matrix anew dominates; above, products gain nothing. Measured."""

ENOUGH_POSITIONS = 512
"""Positions of a chunk, beyond which a matrix product becomes hardly any faster. Measured."""

CHUNKS = 7
"""Chunks that the positions are divided into, between those bounds: a seventh of the logits is held. A choice: memory."""

CACHED_LOGITS = 2**20
"""Logits worked on together; fewer are nearer in the cache, but each operation wakes all threads. Measured."""

ONEDNN_MULTIPLICATIONS = 2**27
"""Multiplications of a product, below which oneDNN's making code for a new shape (up to 1 ms) does not pay. Measured."""

ONEDNN_BLOCK, OUTER_BLOCK, WIDENED_BLOCK = 2**20, 2**19, 2**22
"""Elements of a part of the matrix or of the logits: in oneDNN's product for the logits, in the sums of d^T h, and where a
half type is brought into float32. They stay in the cache until they are added or copied. Measured."""

# --- route_triton

TILE, TILE_ACROSS = 4096, 64
"""Numbers of a tile of positions x classes; and classes of one where they are not next to each other in memory, so that
neighbouring threads read neighbouring positions. Measured on a GPU."""
