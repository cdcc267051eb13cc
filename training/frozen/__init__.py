"""What is trained on the latents of a finished package: its proposer, and its step predictor."""
