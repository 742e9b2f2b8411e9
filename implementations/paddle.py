"""PaddlePaddle: paddle.nn.functional.cross_entropy, on the CPU."""

from xentcheck.implementation import Adapter, Deviation

# Cases whose mean is divided by the ignored positions, too.
MEANS = (
    "accuracy/many-positions[float32-mean]",
    "accuracy/many-positions[float64-mean]",
    "ignored-nonfinite/dtype[float64]",
    "ignored-nonfinite/mixed[mean]",
    "ignored-nonfinite/one-class-of-a-row[minus-inf]",
    "ignored-nonfinite/one-class-of-a-row[nan]",
    "ignored-nonfinite/one-class-of-a-row[plus-inf]",
    "ignored-nonfinite/seed-002-row-of-minus-inf",
    "ignored-nonfinite/seed-002-vocabulary-mask",
    "ignored-nonfinite/seed-002-vocabulary-mask-by-the-advice",
    "ignored-nonfinite/tokens[minus-inf]",
    "ignored-nonfinite/tokens[nan]",
    "ignored-nonfinite/tokens[plus-inf]",
    "ignored-nonfinite/whole-rows[1e30-mean]",
    "ignored-nonfinite/whole-rows[minus-1e30-mean]",
    "ignored-nonfinite/whole-rows[minus-inf-mean]",
    "ignored-nonfinite/whole-rows[nan-mean]",
    "ignored-nonfinite/whole-rows[plus-inf-mean]",
    "ignored-positions/default-value[mean]",
    "ignored-positions/dtype[float64]",
    "ignored-positions/ignored-in-a-later-block",
    "ignored-positions/many-classes-tail",
    "ignored-positions/one-kept-of-three",
    "ignored-positions/place[all-but-one]",
    "ignored-positions/place[all-but-the-last]",
    "ignored-positions/place[every-second]",
    "ignored-positions/place[first]",
    "ignored-positions/place[last]",
    "ignored-positions/place[prefix]",
    "ignored-positions/place[scattered]",
    "ignored-positions/place[suffix]",
    "ignored-positions/seed-000-token-classification-flattened",
    "ignored-positions/seed-001-unlabelled",
    "ignored-positions/seed-002-three-rows-of-ones",
    "ignored-positions/three-kept-of-five[mean]",
    "ignored-positions/tokens[minus-100-mean]",
    "ignored-positions/trailing-axis[mean]",
    "ignored-positions/unequal-halves",
    "ignored-positions/value[far]",
    "ignored-positions/value[minus-100]",
    "ignored-positions/value[minus-1]",
    "ignored-positions/volume",
    "layouts/classes-last-tokens[float32]",
    "layouts/dtype[float64]",
    "layouts/expanded-targets-of-tokens",
    "layouts/large",
    "layouts/logits[expanded]",
    "layouts/logits[offset]",
    "layouts/logits[strided]",
    "layouts/logits[transposed]",
    "layouts/pixels[channels_last]",
    "layouts/pixels[expanded]",
    "layouts/pixels[offset]",
    "layouts/pixels[strided]",
    "layouts/pixels[transposed]",
    "layouts/targets-of-pixels[offset]",
    "layouts/targets-of-pixels[strided]",
    "layouts/targets-of-pixels[transposed]",
    "layouts/targets-of-tokens[offset]",
    "layouts/targets-of-tokens[strided]",
    "layouts/targets-of-tokens[transposed]",
    "modes/deterministic[rows]",
    "modes/edited-before-the-backward-pass[float32-mean]",
    "modes/edited-large",
    "modes/two-backward-passes[float32-mean]",
    "modes/two-losses[float32-mean]",
    "target-dtypes/int32",
    "target-dtypes/int32-tokens",
    "unclaimed-options/ignore-index",
    "upstream-gradient/scalar[minus-two-mean]",
    "upstream-gradient/scalar[three-mean]",
)
MEANS_WITHOUT_GRADIENT = (
    "modes/no-gradient-needed[float32-mean]",
    "modes/no-graph[inference_mode-mean]",
    "modes/no-graph[no_grad-mean]",
    "upstream-gradient/zero[mean]",
)
SMOOTHED_AND_IGNORED = (
    "all-ignored/smoothing",
    "all-ignored/weights-and-smoothing[mean]",
    "all-ignored/weights-and-smoothing[none]",
    "ignored-nonfinite/smoothing[minus-inf]",
    "ignored-nonfinite/smoothing[nan]",
    "ignored-nonfinite/smoothing[plus-inf]",
    "ignored-nonfinite/weights-and-smoothing",
    "infinite-or-nan-valid-row/nan-with-smoothing",
    "label-smoothing/amount-with-ignoring[1.0]",
    "label-smoothing/by-hand",
    "label-smoothing/ignoring-without-reduction",
    "label-smoothing/ignoring[byte-255]",
    "label-smoothing/ignoring[minus-100]",
    "label-smoothing/segmentation",
    "label-smoothing/tokens[mean]",
    "label-smoothing/tokens[none]",
    "label-smoothing/weights-and-ignoring[minus-100]",
    "label-smoothing/weights-and-ignoring[minus-1]",
    "layouts/weights-and-smoothing[expanded]",
    "layouts/weights-and-smoothing[transposed]",
    "modes/two-backward-passes-with-weights",
    "modes/two-losses-of-tokens",
    "upstream-gradient/weights-and-smoothing[mean]",
    "upstream-gradient/weights-and-smoothing[none]",
)
SOFT_LABELS = (
    "class-probabilities/classification[float32-none]",
    "class-probabilities/classification[float64-none]",
    "class-probabilities/do-not-add-up-to-one[none]",
    "class-probabilities/impossible-class-that-is-wanted[none]",
    "class-probabilities/impossible-class[none]",
    "class-probabilities/one-hot[none]",
    "class-probabilities/position-without-probability[none]",
    "class-probabilities/smoothing[none]",
    "class-probabilities/strides[both]",
    "class-probabilities/strides[offset]",
    "class-probabilities/strides[strided]",
    "class-probabilities/strides[transposed]",
    "class-probabilities/tokens[none]",
    "class-probabilities/unbatched[none]",
    "class-probabilities/weights[one-hot-none]",
    "class-probabilities/weights[random-none]",
    "empty-batch/smoothing[none]",
    "label-smoothing/class-at-minus-inf-in-one-row",
    "label-smoothing/class-at-minus-inf[none]",
    "label-smoothing/classification[float32-none]",
    "label-smoothing/classification[float64-none]",
    "label-smoothing/large-logits",
    "label-smoothing/many-classes",
    "label-smoothing/target-at-minus-inf[0.1]",
    "label-smoothing/target-at-minus-inf[1.0]",
    "label-smoothing/unbatched",
    "label-smoothing/weights[none]",
    "label-smoothing/zero-weight-at-minus-inf[none]",
)
CAPPED = (
    "logit-range/huge-loss[mean]",
    "logit-range/huge-loss[none]",
    "logit-range/large-loss[float32]",
    "logit-range/one-huge-class",
    "logit-range/scale[hundred-float32]",
    "logit-range/scale[ten-thousand-float32]",
    "minus-infinity/at-the-target-by-hand",
    "minus-infinity/at-the-target-of-tokens",
    "minus-infinity/at-the-target[mean-float32]",
    "minus-infinity/at-the-target[none-float32]",
    "minus-infinity/at-the-target[sum-float32]",
)
CAPPED_GRADIENTS = (
    "logit-range/huge-loss[mean]",
    "logit-range/one-huge-class",
    "logit-range/scale[hundred-float32]",
    "logit-range/scale[ten-thousand-float32]",
    "minus-infinity/all-other-classes[mean]",
    "minus-infinity/all-other-classes[none]",
    "minus-infinity/at-the-target-by-hand",
    "minus-infinity/column-of-tokens",
    "minus-infinity/column-with-ignored-positions",
    "minus-infinity/column[all-but-two]",
    "minus-infinity/column[first]",
    "minus-infinity/column[last]",
    "minus-infinity/column[middle]",
    "minus-infinity/leading-block-of-a-few-rows",
    "minus-infinity/leading-block-of-a-large-vocabulary",
    "minus-infinity/leading-block[float32]",
    "minus-infinity/one-finite-class",
    "minus-infinity/one-other-class[float32-mean]",
    "minus-infinity/one-other-class[float32-none]",
    "minus-infinity/upper-triangle",
)
SOURCE = "https://github.com/PaddlePaddle/Paddle/blob/v3.3.1/"
MEAN = {
    "fault": "value",
    "observed": "under a negative ignore_index and without weights, the mean is divided by the number of all positions",
    "reason": "cross_entropy counts the valid positions only where ignore_index >= 0, and takes the plain mean otherwise",
    "link": "https://github.com/PaddlePaddle/Paddle/issues/47418",
}
SMOOTHED = {
    "fault": "raised",
    "observed": "an ignored label that is no class is refused under label smoothing",
    "reason": "the labels become one-hot before the ignored ones are left out",
    "link": SOURCE + "python/paddle/nn/functional/loss.py#L3015",
}
CAP = {
    "fault": "value",
    "observed": "no logit counts as less than 64 below the largest: losses end near 64, and classes at -inf get a gradient",
    "reason": "the softmax on the CPU clips the differences at -64",
    "link": SOURCE + "paddle/phi/kernels/funcs/softmax_impl.h#L36",
}
SHAPE = {
    "fault": "shape",
    "observed": "with label smoothing or probabilities, the losses of positions keep an axis of length 1",
    "reason": "only losses of integer labels are squeezed",
    "link": SOURCE + "python/paddle/nn/functional/loss.py#L3153",
}
DEVIATIONS = (
    *(Deviation(MEANS, aspect=aspect, **MEAN) for aspect in ("loss", "gradient")),
    Deviation(MEANS_WITHOUT_GRADIENT, aspect="loss", **MEAN),
    *(Deviation("*", aspect=aspect, certain=False, **MEAN) for aspect in ("deletion", "splitting", "reductions")),
    *(Deviation(SMOOTHED_AND_IGNORED, aspect=aspect, **SMOOTHED) for aspect in ("loss", "gradient", "shape")),
    *(Deviation(SOFT_LABELS, aspect=aspect, **SHAPE) for aspect in ("loss", "shape")),
    Deviation(CAPPED, aspect="loss", **CAP),
    Deviation(CAPPED_GRADIENTS, aspect="gradient", **CAP),
)


def call(logits, labels, upstream, *, weight=None, **options):
    from paddle.nn.functional import cross_entropy

    import paddle

    if labels.ndim == logits.ndim and labels.dtype.kind == "f":
        options["soft_label"] = True
    if weight is not None:
        options["weight"] = paddle.to_tensor(weight)
    given = paddle.to_tensor(logits, stop_gradient=False)
    loss = cross_entropy(given, paddle.to_tensor(labels), **options)
    loss.backward(paddle.to_tensor(upstream).reshape(loss.shape))
    return loss.numpy(), given.grad.numpy()


implementation = Adapter(
    name="paddle",
    call=call,
    layout="classes-last",
    gradient="returned",
    offers={"weight", "label_smoothing", "class_probabilities"},
    lacks={"bfloat16", "float16"},
    requires=["paddlepaddle==3.3.1", "setuptools==80.9.0"],
    shares_torch=False,
    deviations=DEVIATIONS,
)
