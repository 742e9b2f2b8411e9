"""ONNX Runtime's kernel for the operator SoftmaxCrossEntropyLoss, on the CPU. Forward only."""

from functools import cache

from xentcheck.implementation import Adapter


@cache
def session(dtype, label_dtype, rank, weighted, reduction, ignore_index):
    """A model of one node."""
    import onnx
    import onnxruntime
    from onnx import helper

    kinds = {"float32": 1, "float64": 11, "float16": 10, "bfloat16": 16, "int32": 6, "int64": 7}
    shape = [None] * rank
    inputs = [
        helper.make_tensor_value_info("scores", kinds[dtype], shape),
        helper.make_tensor_value_info("labels", kinds[label_dtype], shape[1:]),
    ]
    if weighted:
        inputs.append(helper.make_tensor_value_info("weights", kinds[dtype], [None]))
    output = helper.make_tensor_value_info("loss", kinds[dtype], shape[1:] if reduction == "none" else [])
    node = helper.make_node(
        "SoftmaxCrossEntropyLoss",
        [one.name for one in inputs],
        ["loss"],
        reduction=reduction,
        ignore_index=ignore_index,
    )
    graph = helper.make_graph([node], "loss", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def call(logits, labels, *, weight=None, ignore_index=-100, reduction="mean"):
    given = {"scores": logits, "labels": labels} | ({} if weight is None else {"weights": weight})
    model = session(logits.dtype.name, labels.dtype.name, logits.ndim, weight is not None, reduction, ignore_index)
    return model.run(None, given)[0]


implementation = Adapter(
    name="onnxruntime",
    call=call,
    layout="channels",
    gradient="none",
    offers={"weight"},
    lacks={"bfloat16", "unbatched"},
    requires=["onnxruntime==1.31.1", "onnx==1.23.2"],
    shares_torch=False,
)
