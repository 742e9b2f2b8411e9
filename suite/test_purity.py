def test_purity(examine):
    """Arguments, global state and random state stay unchanged, and the same call gives the same answer."""
    examine("purity")
