"""Training of an action-conditioned predictor on a frozen encoder."""
