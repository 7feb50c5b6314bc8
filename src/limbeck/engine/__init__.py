"""The loop: fit, evaluate, compare, and what they write. Knows nothing of any loss."""
