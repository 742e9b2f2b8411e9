"""The operator SoftmaxCrossEntropyLoss in the reference implementation of ONNX. Forward only."""

from xentcheck.implementation import Adapter


def call(logits, labels, *, weight=None, ignore_index=-100, reduction="mean"):
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    given = {"scores": logits, "labels": labels} | ({} if weight is None else {"weights": weight})
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
    ]
    output = helper.make_empty_tensor_value_info("loss")
    node = helper.make_node(
        "SoftmaxCrossEntropyLoss", list(given), ["loss"], ignore_index=ignore_index, reduction=reduction
    )
    model = helper.make_model(helper.make_graph([node], "loss", inputs, [output]))
    return ReferenceEvaluator(model).run(None, given)[0]


implementation = Adapter(
    name="onnx_reference",
    call=call,
    layout="channels",
    gradient="none",
    offers={"weight"},
    lacks={"unbatched"},
    requires=["onnx==1.23.2"],
    shares_torch=False,
)
