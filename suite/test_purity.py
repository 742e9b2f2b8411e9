def test_purity(examine):
    """Arguments, global state and random state stay as they were, and the same call gives the same answer."""
    examine("purity")
