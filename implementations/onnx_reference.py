"""The operator SoftmaxCrossEntropyLoss in the reference implementation of ONNX. Forward only."""

from xentcheck.implementation import Adapter, Deviation

SOURCE = "https://github.com/onnx/onnx/blob/v1.23.2/onnx/reference/ops/op_softmax_cross_entropy_loss.py"
EMPTY = {
    "fault": "raised",
    "observed": "a batch of no position is refused",
    "reason": "NumPy cannot reshape an empty array to an unknown length",
    "link": SOURCE + "#L44",
}
EMPTY_CASES = (
    "empty-batch/classification[*]",
    "empty-batch/segmentation",
    "empty-batch/weights[*]",
    "empty-batch/ignore-value",
)
DEVIATIONS = (
    Deviation(
        (
            "logit-range/scale[hundred-*]",
            "logit-range/scale[ten-thousand-*]",
            "logit-range/large-loss[*]",
            "logit-range/huge-loss[*]",
            "logit-range/one-huge-class",
            "accuracy/scale[fifty-float32]",
            "accuracy/scale[fifty-bfloat16]",
            "accuracy/large-losses[float16]",
            "accuracy/scale[ten-float16]",
            "accuracy/scale[fifty-float16]",
        ),
        aspect="loss",
        fault="inf",
        observed="an infinite loss where the target's probability is too small for the dtype",
        reason="the logarithm of the softmax is taken in two steps",
        link=SOURCE + "#L26",
    ),
    Deviation(
        (
            "bad-input/target[minus-1-under-minus-100]",
            "bad-input/target-without-reduction[minus-1]",
            "bad-input/target-without-reduction[minus-4-under-minus-1]",
            "bad-input/negative-target-of-tokens",
            "bad-input/target-with-weights[minus-1]",
            "bad-input/compiled-target[minus-1]",
        ),
        aspect="rejection",
        fault="accepted",
        observed="a negative label that is not ignored counts from the last class",
        reason="it is an index of NumPy, and is not checked",
        link=SOURCE + "#L56",
    ),
    *(Deviation(EMPTY_CASES, aspect=aspect, **EMPTY) for aspect in ("loss", "shape")),
)


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
    slow=True,
    call=call,
    layout="channels",
    gradient="none",
    offers={"weight"},
    lacks={"unbatched"},
    requires=["onnx==1.23.2"],
    shares_torch=False,
    deviations=DEVIATIONS,
)
