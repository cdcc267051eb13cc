"""Rollouts of the action-conditioned predictor: predictions fed back, one frame at a time, with a key/value cache.

Attention runs frame by frame, so the keys and values of past frames never change: keeping them gives exactly what
predicting the whole prefix again gives. Every sample has a cache of its own (25 MB a frame for the published model in
bfloat16), so samples go through in chunks that fit the memory at hand.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from model.layers.transformer import Block, KeyValue
from model.runtime.cuda_graphs import being_captured
from model.runtime.memory import free_memory
from model.vjepa2.action_predictor import ActionPredictor
from model.vjepa2.poses import compose

Cache = list[KeyValue | None]
"""For every block, the keys and values of all frames so far, or None before the first."""
MEMORY_SHARE = 0.7
MAX_CHUNK = 512


def normalize(latents: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch latent"]:
    """Layer norm without parameters, applied to encodings and to every prediction."""
    return F.layer_norm(latents, latents.shape[-1:])


def rollout(
    predictor: ActionPredictor,
    latents: Float[Tensor, "batch history tokens latent"],
    states: Float[Tensor, "batch history 7"],
    past_actions: Float[Tensor, "batch past 7"],
    actions: Float[Tensor, "batch samples time 7"],
    extrinsics: Float[Tensor, "batch frames 6"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "batch samples time tokens latent"]:
    """Normalized latents after each action of each sample.

    `latents` (normalized) and `states` are the frames seen, oldest first, and `past_actions` what was done between them
    (one fewer). Poses after the last are composed from the actions. `extrinsics`, for models that take them, cover the
    frames seen or these and the predicted ones; the last is held. A model with a window sees the newest frames alone,
    and the first of them as frame 0: once it moves, they go through anew. `chunk` is the number of samples
    computed at once; by default what fits into free memory. Differentiable in the actions.
    """
    batch, samples, time = actions.shape[:3]
    history = latents.shape[1]
    if past_actions.shape[1] != history - 1 or states.shape[1] != history:
        counts = f"{history} latents, {states.shape[1]} states and {past_actions.shape[1]} past actions"
        raise ValueError(f"context: must hold n latents, n states and n-1 past actions, got {counts}")
    if (window := predictor.config.window) is not None and history > window:
        latents, states, past_actions = latents[:, -window:], states[:, -window:], past_actions[:, history - window :]
        extrinsics = None if extrinsics is None else extrinsics[:, history - window :]
        history = window
    if extrinsics is not None:
        missing = max(history + time - 1 - extrinsics.shape[1], 0)
        extrinsics = torch.cat([extrinsics, extrinsics[:, -1:].expand(-1, missing, -1)], dim=1)
    predicted = latents.new_empty(batch * samples, time, *latents.shape[2:])
    if chunk is None and being_captured(latents.device):
        chunk = MAX_CHUNK  # what is captured takes a small part of the memory
    elif chunk is None:
        chunk = chunk_size(predictor, history, time, free_memory(latents.device))
    embedded = predictor.predictor_embed(latents)
    past, seen = _remember(predictor, embedded[:, :-1], states[:, :-1], past_actions, extrinsics)
    flat = actions.flatten(0, 1)
    for first in range(0, batch * samples, chunk):
        rows = slice(first, min(first + chunk, batch * samples))
        robots = torch.arange(rows.start, rows.stop, device=latents.device) // samples
        cameras = None if extrinsics is None else extrinsics[robots, history - 1 :]
        start = embedded[robots, -1], states[robots, -1]
        earlier = [frame[robots] for frame in seen]
        predicted[rows] = _predict(predictor, *start, _share(past, robots), earlier, flat[rows], cameras)
    return predicted.view(batch, samples, *predicted.shape[1:])


def _remember(
    predictor: ActionPredictor, embedded: Tensor, states: Tensor, actions: Tensor, extrinsics: Tensor | None
) -> tuple[Cache, list[Tensor]]:
    """Keys and values of the frames before the last, which all samples of a robot share, and these frames' tokens."""
    past: Cache = [None] * predictor.config.depth
    frames = []
    for index in range(embedded.shape[1]):
        camera = None if extrinsics is None else extrinsics[:, index]
        frames.append(predictor.frame(embedded[:, index], actions[:, index], states[:, index], camera))
        _step(predictor, frames[-1], index, past, keep=True)
    return past, frames


def _share(past: Cache, robots: Int[Tensor, " rows"]) -> Cache:
    """The cache of every row's robot."""
    return [None if pair is None else (pair[0][robots], pair[1][robots]) for pair in past]


def _predict(
    predictor: ActionPredictor,
    embedded: Float[Tensor, "rows tokens width"],
    states: Float[Tensor, "rows 7"],
    past: Cache,
    earlier: list[Tensor],
    actions: Float[Tensor, "rows time 7"],
    extrinsics: Float[Tensor, "rows time 6"] | None,
) -> Float[Tensor, "rows time tokens latent"]:
    """Roll one chunk forward, adding its frames to the cache `past`; `earlier` are the tokens of the frames in it."""
    predictions = []
    steps, window, index = actions.shape[1], predictor.config.window, len(earlier)
    for time in range(steps):
        last = time + 1 == steps
        camera = None if extrinsics is None else extrinsics[:, time]
        tokens = predictor.frame(embedded, actions[:, time], states, camera)
        if window is not None and index == window:  # it moves: its frames have other places, and the oldest is gone
            past, index = [None] * len(past), window - 1
            for place, frame in enumerate(earlier[len(earlier) - index :]):
                _step(predictor, frame, place, past, keep=True)
        patches = _step(predictor, tokens, index, past, keep=not last)
        index += 1
        if window is not None:
            earlier = [*earlier, tokens][-window:]
        predictions.append(normalize(predictor.read(patches)))
        if not last:
            states = compose(states, actions[:, time])
            embedded = predictor.predictor_embed(predictions[-1])
    return torch.stack(predictions, dim=1)


def _step(
    predictor: ActionPredictor, tokens: Float[Tensor, "rows frame width"], index: int, past: Cache, keep: bool
) -> Float[Tensor, "rows tokens width"]:
    """One frame through all blocks: its patch tokens. With `keep`, the frame is added to the cache.

    The cache changes in place, block by block: two of them side by side would take twice the memory.
    """
    rotary = predictor.rotary(index, 1, tokens)
    for number, block in enumerate(predictor.predictor_blocks):
        assert isinstance(block, Block)
        tokens, (keys, values) = block.step(tokens, rotary, past[number])
        if keep:  # contiguous: as views they would keep the queries alive too
            past[number] = keys.contiguous(), values.contiguous()
    return tokens[:, predictor.config.condition_tokens :]


def chunk_size(predictor: ActionPredictor, history: int, time: int, free: int) -> int:
    """Samples that can be rolled out at once in `free` bytes, at least 1."""
    config = predictor.config
    element = predictor.predictor_proj.weight.element_size()
    tokens = config.frame_tokens + config.condition_tokens
    frame_layer = 2 * tokens * config.width * element  # keys and values of one frame in one block
    remembered = history - 1 + time - 1
    cache = frame_layer * remembered * config.depth + 2 * frame_layer * (remembered + 1)
    rotation = 3 * 2 * tokens * config.width * 4  # rotated in float32: queries and keys, with two temporaries
    activations = tokens * (8 * config.width + 2 * config.mlp_hidden) * element + rotation
    latents = (2 * time + 2) * config.frame_tokens * config.latent_width * element
    return int(max(1, min(MAX_CHUNK, MEMORY_SHARE * free // (cache + activations + latents))))
