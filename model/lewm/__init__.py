"""LeWorldModel (arXiv 2603.19312): one latent per image and an autoregressive predictor of action blocks."""
