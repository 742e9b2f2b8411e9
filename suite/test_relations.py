"""What must hold between the answers to related batches, whatever the right answer is."""


def test_deletion(examine):
    """Deleting the ignored positions changes nothing."""
    examine("deletion")


def test_poisoning(examine):
    """Whatever ignored positions hold, loss and gradients are the same bit for bit, and their own gradient is zero."""
    examine("poisoning")


def test_permutation(examine):
    """Positions in another order give the same answer in that order."""
    examine("permutation")


def test_class_permutation(examine):
    """Classes in another order give the same answer in that order."""
    examine("class_permutation")


def test_shift(examine):
    """A constant added to all logits of a position changes nothing."""
    examine("shift")


def test_splitting(examine):
    """The answers to two parts of a batch, weighted by what counts in each, give the answer to the batch."""
    examine("splitting")


def test_linearity(examine):
    """The gradient is linear in the upstream gradient, position by position."""
    examine("linearity")


def test_zero_sum(examine):
    """The gradient of a position that counts adds up to zero over the classes."""
    examine("zero_sum")


def test_reductions(examine):
    """The losses of reduction none add up to the sum and, over the denominator, to the mean; so do their gradients."""
    examine("reductions")
