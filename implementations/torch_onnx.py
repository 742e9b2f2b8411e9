"""torch's own loss, exported to ONNX by torch.onnx.export and run by ONNX Runtime on the CPU. Forward only."""

from functools import cache

from xentcheck.implementation import Adapter


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
)
