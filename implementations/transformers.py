"""Hugging Face Transformers: the loss of its language models, what that is made of, token classification, and label smoothing."""

from types import SimpleNamespace

from xentcheck.implementation import Adapter

INSTALLED = {
    "requires": [
        "transformers==5.23.0",
    ],
    "built_on": "torch",
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
        call=causal,
        layout="sequence",
        shifts=True,
        reductions={"mean"},
        keywords={"normalizer": "num_items_in_batch"},
        **INSTALLED,
    ),
    Adapter(
        name="transformers_token_classification",
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
)
