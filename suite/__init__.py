"""The tests that users run: ``pytest suite/ --impl NAMES`` in a checkout, ``pytest --pyargs xentcheck.suite --impl NAMES`` elsewhere."""
