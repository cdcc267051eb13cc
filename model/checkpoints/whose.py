"""Files that Presage does not import, by name: whose they are, and what can be imported in their place."""

from __future__ import annotations

from model.checkpoints.foreign import Foreign
from model.checkpoints.state_dict import strip_prefix

IMPORTED = "V-JEPA 2 and 2.1, LeWM, DINO-WM and jepa-wms are imported (presage weights list)"


def whose(foreign: Foreign) -> str | None:
    """Whose file it is that no family imports; None where nothing is known of it."""
    config = foreign.config if foreign.path.is_dir() else None
    kind = str((config or {}).get("model_type", ""))
    if kind and kind != "vjepa2":
        other = f" ({_ENCODERS[kind]})" if kind in _ENCODERS else ""
        return f"{foreign.path}: config.json: model_type must be 'vjepa2', got {kind!r}{other}; {IMPORTED}"
    sections = foreign.file.sections
    keys = {strip_prefix(key) for key in sections.get("", {})}
    if any(key.endswith(("ls1.gamma", "layer_scale1.lambda1")) for key in keys):
        return (
            f"{foreign.path}: is an image encoder of DINOv2's or DINOv3's kind, which plans nothing by itself: give it "
            "beside a planner's file with --encoder-weights"
        )
    for section, what in _SECTIONS.items():
        if section in sections:
            return f"{foreign.path}: holds {what}, which Presage has no use for; {IMPORTED}"
    return None


_ENCODERS = {
    "dinov2": "give it beside a planner's file with --encoder-weights",
    "dinov2_with_registers": "no released planner uses it",
    "dinov3_vit": "Presage does not have its code",
}
_SECTIONS = {
    "image_head": "a decoder of jepa-wms, from latents to pictures",
    "state_head": "a decoder of jepa-wms, from latents to poses",
}
