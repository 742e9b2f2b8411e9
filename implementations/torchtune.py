"""torchtune: its chunked cross entropy."""

from importlib import metadata, util

from xentcheck.implementation import Adapter

CHUNKS = 8


def chunked(logits, labels, **options):
    # Its package needs an old torchao. The file of the loss needs nothing but torch.
    path = metadata.distribution("torchtune").locate_file("torchtune/modules/loss/ce_chunked_output_loss.py")
    specification = util.spec_from_file_location("ce_chunked_output_loss", path)
    module = util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.CEWithChunkedOutputLoss(CHUNKS, **options)(list(logits.chunk(CHUNKS, 1)), labels)


implementation = Adapter(
    name="torchtune",
    computes_in="float32",
    call=chunked,
    layout="sequence",
    reductions={"mean"},
    built_on="torch",
    requires=["torchtune==0.6.1"],
    no_deps=True,
)
