def test_shape(examine):
    """Loss and gradient have the shape and dtype that follow from the reduction and the input."""
    examine("shape")
