"""Hugging Face Transformers: the loss of its language models, what that is made of, token classification, and label smoothing."""

import random
import tempfile
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

from _torch import POISONED
from xentcheck.implementation import Adapter

INSTALLED = {
    "requires": [
        "transformers==5.23.0",
        "accelerate==1.15.0",
    ],
    "built_on": "torch",
    "deviations": (replace(POISONED, certain=False),),
}


def fixed(logits, labels, **options):
    from transformers.loss.loss_utils import fixed_cross_entropy

    return fixed_cross_entropy(logits, labels, **options)


def causal(logits, labels, **options):
    from transformers.loss.loss_utils import ForCausalLMLoss

    return ForCausalLMLoss(logits, labels, logits.shape[-1], **options)


def token_classification(logits, labels, **options):
    from transformers.loss.loss_utils import ForTokenClassification

    return ForTokenClassification(logits, labels, SimpleNamespace(num_labels=logits.shape[-1]), **options)


def label_smoother(logits, labels, *, ignore_index=-100, label_smoothing=0.0):
    from transformers.trainer_pt_utils import LabelSmoother

    return LabelSmoother(label_smoothing, ignore_index)({"logits": logits}, labels)


@cache
def trainer_of(classes, folder):
    """A Trainer of a language model of two layers. Making it sets seeds, which are put back."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=classes, max_position_embeddings=8, **sizes))
    made = Trainer(model=model, args=TrainingArguments(output_dir=folder, use_cpu=True, report_to=[]))
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])
    random.setstate(before[2])
    return made


def trainer(logits, labels, *, normalizer=None):
    """Trainer.compute_loss with the number of labels that the Trainer counts; the model's head gives these logits."""
    import torch

    one = trainer_of(logits.shape[-1], tempfile.gettempdir())
    inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64), "labels": labels}
    if normalizer is None:
        _, normalizer = one.get_batch_samples(iter([inputs]), 1, labels.device)
    replaced = one.model.lm_head.register_forward_hook(lambda *_: logits)
    try:
        return one.compute_loss(one.model, inputs, num_items_in_batch=normalizer)
    finally:
        replaced.remove()


implementations = (
    Adapter(
        name="transformers_fixed",
        call=fixed,
        reductions={"mean"},
        keywords={"normalizer": "num_items_in_batch"},
        offers={"class_probabilities"},
        **INSTALLED,
    ),
    Adapter(
        name="transformers_causal",
        computes_in="float32",
        call=causal,
        layout="sequence",
        shifts=True,
        reductions={"mean"},
        keywords={"normalizer": "num_items_in_batch"},
        **INSTALLED,
    ),
    Adapter(
        name="transformers_token_classification",
        computes_in="float32",
        call=token_classification,
        layout="sequence",
        reductions={"mean"},
        keywords={"normalizer": "num_items_in_batch"},
        **INSTALLED,
    ),
    Adapter(
        name="transformers_label_smoother",
        call=label_smoother,
        layout="sequence",
        reductions={"mean"},
        offers={"label_smoothing"},
        **INSTALLED,
    ),
    Adapter(
        name="transformers_trainer",
        computes_in="float32",
        call=trainer,
        layout="sequence",
        shifts=True,
        ignores="-100 only",
        reductions={"mean"},
        offers={"normalizer"},
        **INSTALLED,
    ),
)
