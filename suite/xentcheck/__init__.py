"""xentcheck: is this cross entropy right, and what does it cost?"""
