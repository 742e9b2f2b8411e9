def test_memory(cost):
    """How many bytes a training step takes, exactly, once its answer to the very batch is right."""
    cost("memory")
