"""Trains a small language model on real text and captures real batches of its loss, for cases that nobody invented.

    pip install transformers -c constraints.txt
    python cases/captured/make_captures.py            # writes beside itself; or into the folder that is named

The text is what every machine with Python has: the docstrings of the standard library. A prompt is a function's or
class's signature, its completion the first line of its documentation. Bytes are tokens, and there are three more: the
beginning, padding and the end, which is the last class. Prompts and padding are ignored (-100), labels are shifted, and
what is longer than 64 tokens is truncated, which now and then leaves nothing of the completions of a micro-batch.

It takes a minute. Seeds are fixed and one thread is used, so the same Python, torch, transformers and processor
make the same files; others make other batches of the same kind, under the same ids.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from xentcheck.capture_batch import capture

MODULES = [
    "base64",
    "bisect",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "difflib",
    "fractions",
    "functools",
    "glob",
    "gzip",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "os.path",
    "random",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "textwrap",
    "threading",
    "time",
    "urllib.parse",
    "zlib",
]
BOS, PAD, EOS, CLASSES = 256, 257, 258, 259
IGNORED = -100
LENGTH = 64
STEPS, MICRO_BATCHES, ROWS = 600, 4, 2  # the second half of the steps in bfloat16 mixed precision

Example = tuple[list[int], list[int]]  # tokens of the prompt and of the completion


def examples() -> list[Example]:
    """Signatures and the first lines of docstrings, in printable ASCII, each once."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, thing in sorted(vars(module).items()):
            document = thing.__doc__ if callable(thing) else None
            if name.startswith("_") or not isinstance(document, str) or not document.strip():
                continue
            try:
                signature = str(inspect.signature(thing))
            except (TypeError, ValueError):
                signature = "(...)"
            prompt, completion = f"{module_name}.{name}{signature}: ", inspect.cleandoc(document).split("\n")[0]
            if " at 0x" not in prompt and (prompt + completion).isascii() and (prompt + completion).isprintable():
                found.setdefault(completion, ([BOS, *prompt.encode()], [*completion.encode(), EOS]))
    return list(found.values())


def micro_batches(data: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end: tokens and labels, each (ROWS, LENGTH); the label of a position is the token after it."""
    order = random.Random(0)
    while True:
        order.shuffle(data)
        for start in range(0, len(data) - ROWS + 1, ROWS):
            tokens = torch.full((ROWS, LENGTH + 1), PAD)
            labels = torch.full((ROWS, LENGTH + 1), IGNORED)
            for row, (prompt, completion) in enumerate(data[start : start + ROWS]):
                text = torch.tensor(prompt + completion)[: LENGTH + 1]
                tokens[row, : len(text)] = text
                labels[row, len(prompt) : len(text)] = text[len(prompt) :]
            yield tokens[:, :-1], labels[:, 1:]


def constrained(logits: Tensor, labels: Tensor) -> Tensor:
    """As a grammar masks them: a completion is printable ASCII or ends there, and after its end nothing is allowed."""
    allowed = torch.zeros(CLASSES, dtype=torch.bool)
    allowed[32:127] = allowed[EOS] = True
    valid = labels != IGNORED
    after = valid.cumsum(dim=1).eq(valid.sum(dim=1, keepdim=True)) & valid.any(dim=1, keepdim=True) & ~valid
    masked = torch.where(valid[..., None], logits.masked_fill(~allowed, -torch.inf), logits)
    return masked.masked_fill(after[..., None], -torch.inf)


def describe(path: Path | None, title: str, why: str) -> None:
    """Puts our words into the case file that capture wrote."""
    assert path, f"{title}: no such micro-batch came up"
    text = re.sub(r"^title: .*$", f"title: {title}", path.read_text(), flags=re.MULTILINE)
    path.write_text(re.sub(r"^    why: ", f"    why: {why}; ", text, flags=re.MULTILINE))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started, data = time.perf_counter(), examples()
    config = LlamaConfig(
        vocab_size=CLASSES, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    batches, losses = micro_batches(data), []
    early = late = nothing_left = None
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(data)} examples, {parameters} parameters")
    for step in range(1, STEPS + 1):
        step_losses = []
        for _ in range(MICRO_BATCHES):
            tokens, labels = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=step > STEPS // 2):
                logits = model(tokens).logits  # (ROWS, LENGTH, CLASSES)
            if (labels == IGNORED).all():
                if step > STEPS // 2 and nothing_left is None:
                    nothing_left = capture(logits.flatten(0, 1), labels.flatten(), folder / "lm-all-ignored")
                continue
            if step == 1 and (labels == EOS).any():
                early = capture(logits.flatten(0, 1), labels.flatten(), folder / "lm-first-step")
            if step == STEPS and (labels == EOS).any():
                late = capture(logits.transpose(1, 2), labels, folder / "lm-last-step")
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
            (loss / MICRO_BATCHES).backward()
            step_losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(statistics.fmean(step_losses))
        if step == 1 or step % 50 == 0:
            print(f"step {step}: loss {statistics.fmean(losses[-20:]):.3f}, {time.perf_counter() - started:.0f} s")
    tokens, labels = next(batch for batch in batches if (batch[1] == EOS).any(dim=1).all())
    logits = constrained(model(tokens).logits, labels)
    masked = capture(logits.flatten(0, 1), labels.flatten(), folder / "lm-constrained")

    lm = f"a byte-level Llama of {parameters:,} parameters"
    describe(early, "First step of a language model", f"{lm}, step 1, float32, when no class is likely yet")
    describe(late, "Last step of a language model", f"{lm}, step {STEPS}, mixed precision, confident; (N, C, d1)")
    describe(masked, "Vocabulary mask on a language model", f"{lm}; after the end of a text no class is allowed")
    describe(nothing_left, "Micro-batch without targets", f"{lm}; truncation left the prompts only")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
