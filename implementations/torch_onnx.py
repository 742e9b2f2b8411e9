"""torch's own loss, exported to ONNX by torch.onnx.export and run by ONNX Runtime on the CPU. Forward only."""

from functools import cache

from xentcheck.implementation import Adapter, Deviation

DROPPED = (
    "label-smoothing/amount-with-ignoring[1.0]",
    "label-smoothing/amount[0.5]",
    "label-smoothing/amount[1.0]",
    "label-smoothing/class-at-minus-inf-in-one-row",
    "label-smoothing/class-at-minus-inf[mean]",
    "label-smoothing/class-at-minus-inf[none]",
    "label-smoothing/class-at-minus-inf[sum]",
    "label-smoothing/classification[float16-mean]",
    "label-smoothing/classification[float16-none]",
    "label-smoothing/classification[float32-mean]",
    "label-smoothing/classification[float32-none]",
    "label-smoothing/classification[float64-mean]",
    "label-smoothing/classification[float64-none]",
    "label-smoothing/ignoring-without-reduction",
    "label-smoothing/ignoring[byte-255]",
    "label-smoothing/ignoring[last-class]",
    "label-smoothing/ignoring[minus-100]",
    "label-smoothing/ignoring[zero]",
    "label-smoothing/large-logits",
    "label-smoothing/many-classes",
    "label-smoothing/segmentation",
    "label-smoothing/target-at-minus-inf[0.1]",
    "label-smoothing/target-at-minus-inf[1.0]",
    "label-smoothing/tokens[mean]",
    "label-smoothing/tokens[none]",
    "label-smoothing/two-classes-by-hand",
    "label-smoothing/weights-and-ignoring[minus-100]",
    "label-smoothing/weights-and-ignoring[minus-1]",
    "label-smoothing/weights-and-ignoring[two]",
    "label-smoothing/weights[mean]",
    "label-smoothing/weights[none]",
    "label-smoothing/weights[sum]",
    "label-smoothing/zero-weight-at-minus-inf[mean]",
    "label-smoothing/zero-weight-at-minus-inf[none]",
    "label-smoothing/zero-weight[0.1]",
    "label-smoothing/zero-weight[1.0]",
)
SOURCE = "https://github.com/microsoft/onnxscript/blob/v0.7.2/onnxscript/function_libs/torch_lib/ops/nn.py"


@cache
def session(signature, options):
    """The model for inputs of these shapes and dtypes."""
    import onnxruntime
    import torch

    class Loss(torch.nn.Module):
        def forward(self, logits, labels, weight=None):
            return torch.nn.functional.cross_entropy(logits, labels, weight=weight, **dict(options))

    example = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in signature)
    program = torch.onnx.export(Loss(), example, dynamo=True, verbose=False)
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


def call(logits, labels, *, weight=None, **options):
    import torch

    given = [logits.detach(), labels] + ([] if weight is None else [weight])
    signature = tuple((tuple(one.shape), one.dtype) for one in given)
    model = session(signature, tuple(sorted(options.items())))
    names = [one.name for one in model.get_inputs()]
    return torch.from_numpy(model.run(None, {name: one.numpy() for name, one in zip(names, given, strict=True)})[0])


implementation = Adapter(
    name="torch_onnx",
    slow=True,
    call=call,
    layout="channels",
    gradient="none",
    offers={"weight", "label_smoothing", "class_probabilities"},
    lacks={"bfloat16"},
    requires=["onnxscript==0.7.2", "onnxruntime==1.31.1", "onnx==1.23.2"],
    environment="torch_onnx",
    deviations=(
        Deviation(
            DROPPED,
            aspect="loss",
            fault="value",
            observed="label_smoothing is dropped in the export: the loss is that without smoothing, and nothing says so",
            reason="the translation of cross_entropy_loss takes the argument and does not use it",
            link=SOURCE + "#L362",
        ),
    ),
)
