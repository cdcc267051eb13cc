"""Networks and their files: encoders, predictors, model packages. Knows nothing of planners or services."""
