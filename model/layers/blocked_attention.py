"""Attention in bfloat16 on processors, in pieces that their caches hold: rotation, scores, mixing. Without gradient.

PyTorch's fused kernel multiplies bfloat16 at the rate of float32 where the processor has no matrix tiles, and its
rotation goes through memory four times. `python -m benchmarks.planning` times whole encoders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

SCORES = 1 << 21
"""Computed at once by attention: 4 MB, half of them for either of two cores."""
ROTATED = 1 << 19
"""Numbers rotated at once: 2 MB while they are float32."""
LEAST_TOKENS = 64
"""Fewer are served better by the fused kernel."""
LARGEST_SUM = 2.0**100
"""Of a row's exponentials, and the inverse of the least: beyond it bfloat16 might lose what matters."""


def favors_pieces(tokens: int, *parts: Tensor) -> bool:
    """Whether pieces are the faster: bfloat16 on a processor, enough tokens, and no gradient wanted."""
    if tokens < LEAST_TOKENS or any(part.device.type != "cpu" or part.dtype != torch.bfloat16 for part in parts):
        return False
    return not (torch.is_grad_enabled() and any(part.requires_grad for part in parts))


def rotate_in_pieces(
    flat: Float[Tensor, "flat tokens head_dim"],
    cos: Float[Tensor, "tokens head_dim"],
    sin: Float[Tensor, "tokens head_dim"],
) -> None:
    """Rotate contiguous queries or keys in bfloat16 where they lie, by the rows of a `RotaryTable`, rounding once."""
    for part in torch.split(flat, max(1, ROTATED // cos.numel())):
        pairs = part.view(torch.int32)  # both channels of a pair, which change places
        swapped = (pairs >> 16).bitwise_and_(0xFFFF).add_(pairs, alpha=1 << 16).view(part.dtype)
        torch.addcmul(part * cos, swapped, sin, out=part)


def attention_in_pieces(
    queries: Float[Tensor, "batch heads queries head_dim"],
    keys: Float[Tensor, "batch heads keys head_dim"],
    values: Float[Tensor, "batch heads keys head_dim"],
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Attention as plain matrix products, of as many heads and queries at once as the cache holds.

    Scores are rounded to the inputs' type, as wherever attention is not fused.
    """
    batch, heads, length, head_dim = queries.shape
    # contiguous: oneDNN copies views for every piece anew
    flat = [part.reshape(batch * heads, -1, head_dim).contiguous() for part in (queries, keys, values)]
    mixed, sums = torch.empty_like(flat[0]), queries.new_empty(batch * heads, length, 1)
    # The softmax without looking for every row's largest score first, which would take a fifth of all the time.
    for piece, given, answer, total in _scored([*flat, mixed, sums], factor=math.log2(math.e)):
        torch.exp2(piece, out=piece)
        torch.sum(piece, dim=-1, keepdim=True, out=total)
        torch.bmm(piece, given, out=answer)
    tame = ((sums > 1 / LARGEST_SUM) & (sums < LARGEST_SUM)).flatten(1).all(dim=1)  # not where a sum is a NaN
    for row in (~tame).nonzero().flatten().tolist():
        alone = [part[row : row + 1] for part in (*flat, mixed, sums)]
        for piece, given, answer, total in _scored(alone, factor=1.0):
            torch.bmm(piece.softmax(dim=-1), given, out=answer)
            total.fill_(1.0)
    answers = queries.new_empty(batch, length, heads, head_dim).transpose(1, 2)  # as the projection will read them
    return torch.div(mixed.view(answers.shape), sums.view(*answers.shape[:3], 1), out=answers)


def _scored(flat: Sequence[Tensor], *, factor: float) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Scores times a factor, piece by piece in one buffer, each with its values and its rows of answers and sums.

    `flat` are queries, keys, values, answers and sums, `[flat, queries or keys, ...]`.
    """
    queries, keys = flat[:2]
    (length, head_dim), count = queries.shape[1:], keys.shape[1]
    at_once, rows = max(1, SCORES // (length * count)), max(1, SCORES // count)
    scores = queries.new_empty(min(at_once, len(queries)), min(rows, length), count)
    for asking, looked_at, given, *places in zip(*(torch.split(part, at_once) for part in flat), strict=True):
        for asked, answer, total in zip(*(torch.split(part, rows, dim=1) for part in (asking, *places)), strict=True):
            piece = scores[: len(asked), : asked.shape[1]]
            torch.baddbmm(piece, asked, looked_at.transpose(1, 2), beta=0, alpha=factor * head_dim**-0.5, out=piece)
            yield piece, given, answer, total
