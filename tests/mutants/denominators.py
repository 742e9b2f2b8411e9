"""Means over the wrong denominator."""

from functools import partial

from _correct import claims, denominator, flat, ignore_values, kept, loss, mask, reduce


def _all_positions(classes, keep, weight):
    return denominator(classes, keep, weight) + (~keep).sum()


def mean_divides_by_all_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean is taken over ignored positions as well.

    Link: https://github.com/open-mmlab/mmsegmentation/issues/546
    """
    wrong = partial(loss, denominator=_all_positions)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_divides_by_batch_size(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The mean is the sum over the number of samples, however many positions they have."""
    samples = input.shape[0] if input.dim() > 1 else 1

    def count(classes, keep, weight):
        return weight.new_tensor(samples)

    wrong = partial(loss, denominator=count)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_of_sample_means(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Every sample of a batch gets the same say, however many of its positions are kept.

    Link: https://github.com/vllm-project/speculators/pull/942
    """

    def masses(classes, keep, weight):
        return mask(weight[classes], keep)

    def mean_of_means(losses, masses, reduction, shape):
        if reduction != "mean" or len(shape) < 2:
            return reduce(losses, masses.sum(), reduction, shape)
        sums = losses.reshape(shape).flatten(1).sum(1)
        masses = masses.reshape(shape).flatten(1).sum(1)
        return (sums / masses)[masses != 0].mean()

    wrong = partial(loss, denominator=masses, reduce=mean_of_means)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_of_shard_means(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The batch is cut in two, and the means of the halves are averaged.

    Link: https://github.com/pytorch/pytorch/issues/185167
    """

    def masses(classes, keep, weight):
        return mask(weight[classes], keep)

    def mean_of_means(losses, masses, reduction, shape):
        if reduction != "mean" or len(shape) == 0:
            return reduce(losses, masses.sum(), reduction, shape)
        shards = zip(losses.reshape(shape).chunk(2), masses.reshape(shape).chunk(2), strict=True)
        means = [shard.sum() / mass.sum() for shard, mass in shards]
        return sum(means) / len(means)

    wrong = partial(loss, denominator=masses, reduce=mean_of_means)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def mean_divides_by_all_if_the_ignore_value_is_negative(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Ignored positions leave the denominator only where the ignore value could be a class.

    Link: https://github.com/PaddlePaddle/Paddle/issues/48663
    """
    negative = min(ignore_values(ignore_index), default=0) < 0
    wrong = partial(loss, denominator=_all_positions if negative else denominator)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def smoothed_mean_divides_by_all_positions(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """With smoothing, the mean is taken over ignored positions as well.

    Link: https://github.com/huggingface/transformers/issues/7546
    """
    wrong = partial(loss, denominator=_all_positions if label_smoothing > 0 else denominator)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weighted_mean_divides_by_the_count(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The weighted mean is divided by the number of kept positions instead of by their weights.

    Link: https://github.com/pytorch/pytorch/pull/187053
    """
    wrong = partial(loss, denominator=lambda classes, keep, weight: keep.sum())
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def weighted_mean_divides_by_all_class_weights(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The weighted mean is divided by the sum of the class weights, whatever the targets are."""

    def total(classes, keep, given):
        return denominator(classes, keep, given) if weight is None else given.sum()

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def ignored_positions_weigh_as_class_zero(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """In a weighted mean, every ignored position adds the weight of class 0 to the denominator."""

    def total(classes, keep, given):
        return denominator(classes, keep, given) if weight is None else given[classes].sum()

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def denominator_has_an_epsilon(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """The denominator is 1e-5 too large, so that the mean of nothing is 0."""

    def total(classes, keep, weight):
        return denominator(classes, keep, weight) + 1e-5

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def denominator_is_at_least_one(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The denominator is clamped to 1, although small weights may well sum to less."""

    def total(classes, keep, weight):
        return denominator(classes, keep, weight).clamp(min=1)

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


@claims("double_backward")
def negative_total_weight_gives_zero(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """The mean is 0 unless the total weight is positive.

    Link: https://github.com/pytorch/pytorch/issues/64256
    """

    def guarded(losses, total, reduction, shape):
        result = reduce(losses, total, reduction, shape)
        return result * 0 if reduction == "mean" and total < 0 else result

    wrong = partial(loss, reduce=guarded)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def denominator_excludes_the_first_of_the_list_only(
    input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """Of several ignore values, only the first leaves the denominator."""
    first = list(ignore_values(ignore_index))[:1]

    def total(classes, keep, given):
        counted = kept(flat(target), first) & ~keep
        return denominator(classes, keep, given) + counted.sum()

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)


def zero_total_weight_raises(input, target, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """If all kept positions have weight 0, the mean is an error instead of 0/0.

    Link: https://github.com/torch/nn/issues/775
    """

    def total(classes, keep, weight):
        result = denominator(classes, keep, weight)
        if reduction == "mean" and keep.any() and result == 0:
            raise ZeroDivisionError("the total weight is zero")
        return result

    wrong = partial(loss, denominator=total)
    return wrong(input, target, weight, ignore_index, reduction, label_smoothing)
