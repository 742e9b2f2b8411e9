def test_rejection(examine):
    """What cannot be answered is refused with an error, never answered with a number."""
    examine("rejection")
