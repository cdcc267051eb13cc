"""Foreign weight files: reading, downloading and importing them as model packages."""
