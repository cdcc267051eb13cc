"""What callers hand over, as the plain values that messages take. What cannot be meant is named with field and rule.

Numbers of NumPy's are taken wherever Python's are: left as they are, they overflow in sums with a clock.
"""

from __future__ import annotations

import math
import operator
import os
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import numpy as np

from presage.errors import invalid

if TYPE_CHECKING:
    from presage.protocol.arrays import Refuse

IMAGE_RULE = (
    "must be an image: a uint8 array [height, width, 3] of 0 to 255 in RGB, the bytes or the path of a JPEG, PNG or "
    "WebP file, or a PIL picture"
)


def number(field: str, value: object, rule: str = "must be a number") -> float:
    """A float for any real number. Raises InvalidRequest for what is none: text, truth values, arrays, None."""
    if not isinstance(value, (bool, np.bool_, str, bytes, bytearray)) and getattr(value, "ndim", 0) == 0:
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            pass
    raise invalid(field, rule, shown(value))


def positive(field: str, value: object) -> float:
    """A number above 0 and finite. Raises InvalidRequest."""
    rule = "must be above 0 and finite"
    found = number(field, value, rule)
    if not (math.isfinite(found) and found > 0):
        raise invalid(field, rule, value)
    return found


def not_negative(field: str, value: object) -> float:
    """A number of at least 0 and finite. Raises InvalidRequest."""
    rule = "must be at least 0 and finite"
    found = number(field, value, rule)
    if not (math.isfinite(found) and found >= 0):
        raise invalid(field, rule, value)
    return found


def whole(field: str, value: object, limit: int = 1 << 32, least: int = 0) -> int:
    """A whole number from `least` to below `limit`. Raises InvalidRequest; 2.0 is none, for 2.5 would not be either."""
    if isinstance(value, (bool, np.bool_)) or getattr(value, "ndim", 0) != 0:
        raise invalid(field, "must be a whole number", shown(value))
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise invalid(field, "must be a whole number", shown(value)) from None
    if not least <= found < limit:
        raise invalid(field, f"must be at least {least} and below {limit}", found)
    return found


def text(field: str, value: object) -> str:
    """A text; "" for None. Raises InvalidRequest."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid(field, "must be text", shown(value))
    return str(value)


def names(field: str, value: object) -> tuple[str, ...]:
    """Several names. Raises InvalidRequest for a single one too: its letters would be taken for names."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise invalid(field, "must be a sequence of names", shown(value))
    return tuple(text(f"{field}[{at}]", name) for at, name in enumerate(value))


def is_one_image(value: object) -> bool:
    """Whether this is an image by itself, and no sequence of them."""
    if isinstance(value, (bytes, bytearray, memoryview, str, os.PathLike)) or _is_pil(value):
        return True
    return _is_array(value) and getattr(value, "ndim", 0) != 4


def images(field: str, value: object) -> list[Any]:
    """A sequence of images, or one array of several [images, height, width, 3]. Raises InvalidRequest."""
    if is_one_image(value):
        raise invalid(field, "must be a sequence of images; one image is [image]", shown(value))
    if isinstance(value, dict) or not hasattr(value, "__iter__"):
        raise invalid(field, "must be a sequence of images", shown(value))
    return list(value)


def image_content(field: str, value: object) -> bytes | np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as the bytes of its file or as uint8 pixels [height, width, 3].

    Raises InvalidRequest naming `field`.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        content = bytes(value)
        if not content:
            raise _not_an_image(field, "no bytes")
        return content
    if isinstance(value, (str, os.PathLike)):
        return _read(field, value)
    pixels = _pil_pixels(field, value) if _is_pil(value) else _pixels(field, value)
    if pixels.dtype != np.uint8 or not pixels.size or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise _not_an_image(field, f"{pixels.dtype} {list(pixels.shape)}")
    return pixels


def shown(value: object) -> str:
    """What came, for a message: its type, and its value where that is short."""
    if isinstance(value, (str, int, float, np.number)) or value is None:
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _not_an_image(field: str, found: str) -> Exception:
    return invalid(field, IMAGE_RULE, found, "INVALID_IMAGE")


def _read(field: str, path: str | os.PathLike[str]) -> bytes:
    if isinstance(path, str) and path.startswith(("http://", "https://", "data:")):
        raise _not_an_image(field, f"the address {path[:40]}")
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _not_an_image(field, f"{os.fspath(path)[:40]!r}, which cannot be read: {said}") from None
    if not content:
        raise _not_an_image(field, f"the empty file {os.fspath(path)[:40]!r}")
    return content


def _is_pil(value: object) -> bool:
    """Whether this is a picture of Pillow's, which this package does not need."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)


def _is_array(value: object) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _pil_pixels(field: str, picture: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """As a viewer shows it: upright, in RGB."""
    from PIL import ImageOps

    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise _not_an_image(field, f"a PIL picture of mode {picture.mode}, which has not 8 bits per channel")
    try:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError) as error:  # the file behind it is closed or broken
        raise _not_an_image(field, f"a PIL picture that cannot be loaded: {error}") from None


def _pixels(field: str, value: object) -> np.ndarray[Any, Any]:
    if not _is_array(value):
        raise _not_an_image(field, shown(value))
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on an accelerator, one that asks for gradients
        raise _not_an_image(field, f"a {type(value).__name__} that is no array of this machine's: {error}") from None


def one_of(field: str, given: Mapping[str, object], refuse: Refuse, *, least: int = 1) -> None:
    """Raises what `refuse` makes unless exactly one of these is given (not None), or, with `least` 0, at most one."""
    count = sum(value is not None for value in given.values())
    if not least <= count <= 1:
        rule = f"must be {'exactly' if least else 'at most'} one of {' and '.join(given)}"
        raise refuse(field, rule, "both" if count else "neither", "INVALID_FIELD")


def sequence(field: str, value: object, kind: type, what: str) -> Sequence[Any]:
    """A sequence of values of one kind. Raises InvalidRequest."""
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        raise invalid(field, f"must be a sequence of {what}", shown(value))
    found = tuple(value)
    for at, each in enumerate(found):
        if not isinstance(each, kind):
            raise invalid(f"{field}[{at}]", f"must be a {what}", shown(each))
    return found
