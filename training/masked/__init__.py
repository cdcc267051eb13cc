"""Masked-latent pretraining of video encoders."""
