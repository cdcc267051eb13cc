"""Memory and CUDA graphs: how networks run on a device."""
