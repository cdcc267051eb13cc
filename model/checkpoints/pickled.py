"""Objects in pickles, which are never opened: whose file holds them, by the module of their class."""

from __future__ import annotations

_PICKLED = (
    (
        "models.",
        "looks like DINO-WM's own checkpoint: whole modules, pickled; jepa-wms' copies of its planners are read",
    ),
    ("stable_worldmodel", "is an object of stable-worldmodel, pickled; its weights.pt and config.json are read"),
    ("jepa", "looks like an object of LeWM's or H-JEPA's code, pickled; LeWM's weights.pt and config.json are read"),
    ("module", "looks like an object of LeWM's or H-JEPA's code, pickled; LeWM's weights.pt and config.json are read"),
)
"""By the module of the first object in a pickle that is no tensor."""


def pickled(name: str) -> str:
    """Whose file holds an object of that class, as far as known; empty where it is not."""
    return next((f": it {whose}" for prefix, whose in _PICKLED if name.startswith(prefix)), "")
