def test_shape(examine):
    """Loss and gradient have the shape and dtype that the reduction and the input ask for."""
    examine("shape")
