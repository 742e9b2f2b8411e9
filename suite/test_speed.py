def test_speed(cost, benchmark):
    """How long a training step takes beside native's, once its answer to the very batch is right."""
    cost("speed", benchmark)
