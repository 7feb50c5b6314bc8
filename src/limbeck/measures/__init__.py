"""What a trained network is worth in a task beyond classification."""
