def test_loss(examine):
    """The loss is the definition's, within the allowed units of rounding."""
    examine("loss")
