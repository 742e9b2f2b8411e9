def test_gradient(examine):
    """The gradient is the definition's; that of an ignored position is exactly zero."""
    examine("gradient")
