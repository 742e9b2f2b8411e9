"""TRL: the loss of its trainers' fused LM head, over a model that hands on its hidden states."""

from types import SimpleNamespace

from xentcheck.implementation import Adapter


def fused_head(hidden, linear_weight, labels, *, linear_bias=None, **options):
    from torch import nn
    from trl.trainer.utils import add_fused_lm_head

    class Model(nn.Module):
        def base_model(self, hidden, use_cache):
            return SimpleNamespace(last_hidden_state=hidden)

        def get_output_embeddings(self):
            return SimpleNamespace(weight=linear_weight, bias=linear_bias)

        def forward(self, hidden):
            raise NotImplementedError

    model = Model()
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(), model_type="")
    add_fused_lm_head(model)
    return model(hidden, fused_lm_head=True, shift_labels=labels, **options).loss


implementation = Adapter(
    name="trl",
    computes_in="float32",
    call=fused_head,
    linear=True,
    layout="sequence",
    ignores="-100 only",
    reductions={"mean"},
    keywords={"normalizer": "num_items_in_batch"},
    offers={"linear_bias"},
    requires=["trl==1.16.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0", "triton==3.9.0"],
)
