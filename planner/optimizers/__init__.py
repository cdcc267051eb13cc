"""The optimizers: each a frozen dataclass of its settings with a `plan` method."""
