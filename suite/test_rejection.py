def test_rejection(examine):
    """A call without an answer raises an error and never returns a number."""
    examine("rejection")
