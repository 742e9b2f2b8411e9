def test_explore(explore):
    """Cases drawn at random fail in no new way, and what was found before is put right. Asked with ``--explore N`` only."""
    explore()
