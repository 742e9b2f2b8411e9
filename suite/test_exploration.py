def test_explore(explore):
    """Cases drawn at random fail in no new way, and earlier finds are fixed. Runs only with ``--explore N``."""
    explore()
