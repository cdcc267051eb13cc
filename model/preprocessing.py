"""Camera frames to network input: crop by a named policy, resize, normalize.

Takes decoded RGB frames; decoding files is `model.video.decode` and the service's codec. The policies are not
interchangeable: a model sees the world as it was trained to only through its own.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

CropPolicy = Literal[
    "planning",
    "planning_antialiased",
    "training",
    "evaluation",
    "evaluation_antialiased",
    "huggingface",
    "short_side",
    "stretched",
    "exact",
]
"""How an image becomes the model's size.

- `planning`: the largest centered square, resized. What V-JEPA 2-AC was published to plan with.
- `planning_antialiased`: the same square, smoothed before it gets smaller. What models trained here on a lab's own
  recordings see: their cameras are many times larger than their models' images.
- `training`: cut to at most 1.35 : 1 (and at least 0.75 : 1) around the center, then squashed to a square. What V-JEPA
  2-AC was in fact trained with; it shows more of a wide image than `planning`.
- `evaluation`: short side resized to 256/224 of the size, then the center cut out. V-JEPA 2 encoders were scored so.
- `evaluation_antialiased`: the same as tensor pipelines do it, smoothed before it gets smaller.
- `huggingface`: the same in the 8-bit arithmetic of `transformers`' video processor for V-JEPA 2, whose crop begins
  one pixel earlier where the margins are uneven.
- `short_side`: nothing is cut: the short side becomes the size, the long one follows, smoothed and never rounded to
  8 bits. LeWM's published evaluation; of a frame that is not square, a network sees more patches.
- `stretched`: both sides become the size, whatever the aspect, smoothed and never rounded. LeWM's training.
- `exact`: the image must already have the model's size.
"""
CROP_POLICIES: tuple[str, ...] = get_args(CropPolicy)

Color = tuple[float, float, float]
IMAGENET_MEAN: Color = (0.485, 0.456, 0.406)
IMAGENET_STD: Color = (0.229, 0.224, 0.225)

TRAINING_ASPECTS = (0.75, 1.35)
EVALUATION_MARGIN = 256 / 224
LEAST_CONTRAST = 16
"""Between the darkest and the brightest value of a frame that shows anything."""


class ObservationError(ValueError):
    """What a model cannot take. `field` names what is at fault, `rule` what it breaks, `value` what was given."""

    def __init__(self, field: str, rule: str, value: object) -> None:
        super().__init__(f"{field} {rule}, got {value}")
        self.field, self.rule, self.value = field, rule, value


def prepare(
    frames: UInt8[Tensor, "batch height width 3"],
    policy: CropPolicy,
    size: tuple[int, int],
    mean: Color = IMAGENET_MEAN,
    std: Color = IMAGENET_STD,
) -> Float[Tensor, "batch 3 rows columns"]:
    """RGB frames as normalized float32 images of `size` (rows, columns), on the frames' device.

    `mean` and `std` are of pixel values scaled to 0..1. Raises `ObservationError` for anything but 8-bit RGB frames
    with channels last, for a size that is not square where the policy makes squares, and, with `exact`, for any other.
    """
    pixels = _pixels(frames, policy, size)
    center = pixels.new_tensor(mean).mul(255).view(3, 1, 1)
    spread = pixels.new_tensor(std).mul(255).view(3, 1, 1)
    return (pixels - center) / spread


def fit(
    frames: UInt8[Tensor, "batch height width 3"], policy: CropPolicy, size: tuple[int, int]
) -> UInt8[Tensor, "batch rows columns 3"]:
    """The policy's part of RGB frames as images of `size`, in whole pixel values; raises as `prepare` does."""
    if policy == "exact":
        _check(frames, policy, size)
        return frames
    if policy == "short_side" and len(frames.shape) == 4 and frames.shape[1] != frames.shape[2]:
        got = " x ".join(str(each) for each in frames.shape[1:3])
        raise ObservationError("frames", "must be square for images of one size with the short_side policy", got)
    return _pixels(frames, policy, size).round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1)


def _pixels(frames: Tensor, policy: CropPolicy, size: tuple[int, int]) -> Float[Tensor, "batch 3 rows columns"]:
    _check(frames, policy, size)
    return frames.movedim(-1, 1).float() if policy == "exact" else _crop(frames, policy, size[0])


def _check(frames: Tensor, policy: CropPolicy, size: tuple[int, int]) -> None:
    check_frames(frames)
    if policy not in CROP_POLICIES:
        raise ObservationError("crop policy", f"must be one of {', '.join(CROP_POLICIES)}", policy)
    if policy == "exact" and tuple(frames.shape[1:3]) != size:
        got = " x ".join(str(side) for side in frames.shape[1:3])
        raise ObservationError("frames", f"must be {size[0]} x {size[1]} (height x width) exactly", got)
    if policy != "exact" and size[0] != size[1]:
        raise ObservationError("size", f"must be square with the {policy} policy", f"{size[0]} x {size[1]}")


def check_frames(frames: Tensor) -> None:
    """Refuse what is not a batch of 8-bit RGB frames with channels last, naming the likely mistake."""
    if frames.ndim != 4 or frames.shape[-1] != 3:
        hint = " with channels last" if frames.ndim == 4 and frames.shape[1] == 3 else ""
        raise ObservationError("frames", f"must be [batch, height, width, 3]{hint}", list(frames.shape))
    if frames.dtype != torch.uint8:
        raise ObservationError("frames", "must be uint8 in 0..255", str(frames.dtype).removeprefix("torch."))
    if 0 in frames.shape:
        raise ObservationError("frames", "must not be empty", list(frames.shape))


def observation_warnings(frame: UInt8[Tensor, "height width 3"], size: tuple[int, int], patch: int) -> tuple[str, ...]:
    """What is odd, though legal, about a frame for a model of that image size (rows, columns), as warnings.

    Raises `ObservationError` for a frame smaller than one of the model's patches, which no crop can make up for.
    """
    check_frames(frame.unsqueeze(0))
    rows, columns = frame.shape[:2]
    if min(rows, columns) < patch:
        raise ObservationError("frames", f"must have at least {patch} x {patch} pixels, a patch", f"{rows} x {columns}")
    warnings = []
    if min(rows, columns) < min(size) / 2:
        warnings.append(f"frames: {rows} x {columns} pixels are enlarged more than twice, to {size[0]} x {size[1]}")
    darkest, brightest = int(frame.min()), int(frame.max())
    if brightest <= 1:
        warnings.append(
            f"frames: no value above {brightest}; were pixels in 0..1 cast to uint8? 255 is full brightness"
        )
    elif brightest - darkest < LEAST_CONTRAST:
        warnings.append(f"frames: all values lie in {darkest}..{brightest}; is the camera covered or badly exposed?")
    return tuple(warnings)


def _crop(frames: Tensor, policy: CropPolicy, side: int) -> Float[Tensor, "batch 3 side side"]:
    """Pixel values 0..255 of the policy's part of the frames."""
    height, width = frames.shape[1:3]
    if policy in ("evaluation", "evaluation_antialiased", "huggingface"):
        short = int(EVALUATION_MARGIN * side)
        rows, columns = (short * height // width, short) if width < height else (short, short * width // height)
        if policy == "huggingface":
            top, left = (rows - side) // 2, (columns - side) // 2
            return _resize_8bit(frames, rows, columns)[:, :, top : top + side, left : left + side].float()
        smooth = policy == "evaluation_antialiased"
        resized = _resize_smooth(frames, rows, columns) if smooth else _resize_fixed_point(frames, rows, columns)
        # Halves round to even, as the published crop does: it moves the window by one pixel.
        top, left = round((rows - side) / 2), round((columns - side) / 2)
        return resized[:, :, top : top + side, left : left + side]
    if policy in ("short_side", "stretched"):
        rows, columns = side, side
        if policy == "short_side":
            rows, columns = (side * height // width, side) if width < height else (side, side * width // height)
        return _smooth(frames.movedim(-1, 1).float(), rows, columns)
    narrowest, widest = TRAINING_ASPECTS if policy == "training" else (1.0, 1.0)
    rows, columns = height, width
    if width / height > widest:
        columns = round(height * widest)
    elif width / height < narrowest:
        rows = round(width / narrowest)
    top, left = (height - rows) // 2, (width - columns) // 2
    if policy == "planning_antialiased":
        return _resize_smooth(frames[:, top : top + rows, left : left + columns], side, side)
    part = frames[:, top : top + rows, left : left + columns].movedim(-1, 1).float()
    return F.interpolate(part, size=(side, side), mode="bilinear", align_corners=False)


def _resize_smooth(frames: Tensor, rows: int, columns: int) -> Float[Tensor, "batch 3 rows columns"]:
    """Bilinear with antialiasing, rounded to whole pixel values."""
    pixels = frames.movedim(-1, 1).float()
    return _smooth(pixels, rows, columns).round().clamp(0, 255)


def _smooth(pixels: Tensor, rows: int, columns: int) -> Float[Tensor, "batch 3 rows columns"]:
    """Bilinear with antialiasing; pixels that already have the size as they are."""
    if pixels.shape[-2:] == (rows, columns):
        return pixels
    return F.interpolate(pixels, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)


def _resize_8bit(frames: Tensor, rows: int, columns: int) -> UInt8[Tensor, "batch 3 rows columns"]:
    """Bilinear with antialiasing as image libraries do it on 8-bit values: columns first, whole values in between.

    Processors have it in PyTorch; elsewhere the same integers come from two matrix products, exact in float64.
    """
    pixels = frames.movedim(-1, 1)
    if pixels.shape[-2:] == (rows, columns):
        return pixels
    if pixels.device.type == "cpu":
        return F.interpolate(pixels, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
    return resize_8bit_exactly(pixels, rows, columns)


def resize_8bit_exactly(
    pixels: UInt8[Tensor, "batch 3 height width"], rows: int, columns: int
) -> UInt8[Tensor, "batch 3 rows columns"]:
    """The 8-bit resize written out: weights as 16-bit integers, sums rounded to whole values after each axis."""
    values = pixels
    if columns != values.shape[-1]:
        weights, bits = _smooth_weights(values.shape[-1], columns, pixels.device)
        values = _rounded(values.double() @ weights.T, bits)
    if rows != values.shape[-2]:
        weights, bits = _smooth_weights(values.shape[-2], rows, pixels.device)
        values = _rounded(weights @ values.double(), bits)
    return values


def _rounded(sums: Float[Tensor, "*batch rows columns"], bits: int) -> UInt8[Tensor, "*batch rows columns"]:
    """Weighted sums as whole pixel values."""
    return ((sums + (1 << (bits - 1))) / (1 << bits)).floor_().clamp_(0, 255).to(torch.uint8)


def _smooth_weights(old: int, new: int, device: torch.device) -> tuple[Float[Tensor, "new old"], int]:
    """How much of every old pixel is in every new one, as whole numbers, and the bits these are scaled by."""
    scale = old / new
    reach = max(scale, 1.0)
    center = scale * (torch.arange(new, dtype=torch.float64).unsqueeze(1) + 0.5)
    first = (center - reach + 0.5).floor().clamp(min=0)
    last = (center + reach + 0.5).floor().clamp(max=old)
    place = torch.arange(old, dtype=torch.float64)
    share = (1 - ((place - center + 0.5) / reach).abs()).clamp(min=0)
    share = torch.where((place >= first) & (place < last), share, 0.0)
    share = share / share.sum(dim=1, keepdim=True)
    bits, largest = 0, float(share.max())
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return (share * (1 << bits) + 0.5).floor().to(device), bits


def _resize_fixed_point(frames: Tensor, rows: int, columns: int) -> Float[Tensor, "batch 3 rows columns"]:
    """Bilinear without antialiasing, in the integer arithmetic that image libraries use for 8-bit images.

    Weights have 11 bits; rows are combined after dropping 4 and 16 bits. The published evaluation pipeline ran on this,
    and its rounding is a whole pixel value off exact bilinear in one pixel of eight.
    """
    pixels = frames.movedim(-1, 1)
    if pixels.shape[-2:] == (rows, columns):
        return pixels.float()
    height, width = frames.shape[1:3]
    left, right, toward_left, toward_right = _linear_weights(width, columns, frames.device)
    above, below, toward_above, toward_below = _linear_weights(height, rows, frames.device)
    values = pixels.to(torch.int32)
    across = values[..., left] * toward_left + values[..., right] * toward_right
    upper = ((across[..., above, :] >> 4) * toward_above.unsqueeze(-1)) >> 16
    lower = ((across[..., below, :] >> 4) * toward_below.unsqueeze(-1)) >> 16
    return ((upper + lower + 2) >> 2).float()


def _linear_weights(
    old: int, new: int, device: torch.device
) -> tuple[Int[Tensor, " new"], Int[Tensor, " new"], Int[Tensor, " new"], Int[Tensor, " new"]]:
    """For every new pixel: its two old neighbors, and their weights out of 2048."""
    places = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    first = places.floor()
    share = torch.where((first < 0) | (first >= old - 1), 0.0, places - first)
    first = first.clamp(0, old - 1).long()
    second = (first + 1).clamp(max=old - 1)
    weights = ((1.0 - share) * 2048).round(), (share * 2048).round()
    return first.to(device), second.to(device), weights[0].int().to(device), weights[1].int().to(device)
