"""The published V-JEPA 2-AC planning loop, written as it was released: correct, and slow in all the released ways.

float32; a boolean mask in every attention; rotary angles computed anew in every layer, axis by axis; condition tokens
projected one by one; the whole prefix recomputed for every step of the horizon and all but the last frame thrown away;
the context repeated for every sample; poses composed on the host, sample by sample, also after the last step.
The weights are those of a `model.vjepa2.ActionPredictor`. Not the published source: an implementation of what it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.layers.transformer import Attention
from model.vjepa2.action_predictor import ActionPredictor

CONDITIONS = 2  # action and pose, before the patches of a frame


@dataclass(frozen=True)
class PublishedLoop:
    """The released planner's settings; the defaults are the paper's (arXiv 2506.09985)."""

    samples: int = 800
    iterations: int = 10
    elites: int = 10
    horizon: int = 1
    largest_step_m: float = 0.075
    momentum: float = 0.15
    gripper_clip: float = 0.75
    gripper_dead_zone: float = 0.25

    @torch.no_grad()
    def plan(self, predictor: ActionPredictor, latents: Tensor, pose: Tensor, goal: Tensor, draws: Tensor) -> Tensor:
        """Actions [horizon, 7] from normalized latents [tokens, latent] and a pose [7] toward `goal` [tokens, latent].

        `draws` [iterations, horizon, samples, 4] are standard normal: x, y, z, gripper.
        """
        device = latents.device
        mean = torch.zeros(self.horizon, 4, device=device)
        std = torch.tensor([self.largest_step_m] * 3 + [1.0], device=device).repeat(self.horizon, 1)
        context = latents.unsqueeze(0).repeat(self.samples, 1, 1)
        poses = pose.view(1, 1, 7).repeat(self.samples, 1, 1)
        goals = goal.unsqueeze(0).repeat(self.samples, 1, 1)
        for iteration in range(self.iterations):
            seen, states = context, poses
            actions = torch.zeros(self.samples, 0, 7, device=device)
            for step in range(self.horizon):
                drawn = draws[iteration, step].to(device) * std[step] + mean[step]
                move = drawn[:, :3].clamp(-self.largest_step_m, self.largest_step_m)
                grip = drawn[:, 3:].clamp(-self.gripper_clip, self.gripper_clip)
                action = torch.cat([move, torch.zeros(self.samples, 3, device=device), grip], dim=-1)
                actions = torch.cat([actions, action.unsqueeze(1)], dim=1)
                seen, states = step_world(predictor, seen, states, actions)
            costs = (seen[:, -goals.shape[1] :] - goals).abs().mean(dim=(1, 2))
            elites = actions[costs.topk(self.elites, largest=False).indices][:, :, [0, 1, 2, 6]]
            mean = elites.mean(0) * (1 - self.momentum) + mean * self.momentum
            std = elites.std(0) * (1 - self.momentum) + std * self.momentum
        grip = torch.where(mean[:, 3:].abs() < self.gripper_dead_zone, torch.zeros_like(mean[:, 3:]), mean[:, 3:])
        return torch.cat([mean[:, :3], torch.zeros(self.horizon, 3, device=device), grip], dim=-1)


def step_world(predictor: ActionPredictor, seen: Tensor, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Append the next frame's latents and poses to what was seen [samples, frames * tokens, latent]."""
    predicted = predict(predictor, seen, actions, states)[:, -predictor.config.frame_tokens :]
    predicted = F.layer_norm(predicted, predicted.shape[-1:])
    reached = poses_after(states[:, -1].cpu().numpy(), actions[:, -1].cpu().numpy())
    later = torch.from_numpy(reached).to(states.device).unsqueeze(1)
    return torch.cat([seen, predicted], dim=1), torch.cat([states, later], dim=1)


def predict(predictor: ActionPredictor, seen: Tensor, actions: Tensor, states: Tensor) -> Tensor:
    """All frames of the prefix through all blocks, under the frame-causal mask."""
    rows, columns = predictor.config.grid
    samples, frames = actions.shape[:2]
    tokens = predictor.predictor_embed(seen).view(samples, frames, rows * columns, -1)
    conditions = [predictor.action_encoder(actions).unsqueeze(2), predictor.state_encoder(states).unsqueeze(2)]
    tokens = torch.cat([*conditions, tokens], dim=2).flatten(1, 2)
    frame = torch.arange(frames).repeat_interleave(rows * columns + CONDITIONS)
    mask = frame.unsqueeze(1) >= frame.unsqueeze(0)
    for block in predictor.predictor_blocks:
        mixed = attention(block.attn, block.norm1(tokens), frames, rows, columns, mask.to(tokens.device))
        tokens = tokens + mixed
        tokens = tokens + block.mlp(block.norm2(tokens))
    tokens = tokens.view(samples, frames, rows * columns + CONDITIONS, -1)[:, :, CONDITIONS:].flatten(1, 2)
    output: Tensor = predictor.predictor_proj(predictor.predictor_norm(tokens))
    return output


def attention(attn: Attention, x: Tensor, frames: int, rows: int, columns: int, mask: Tensor) -> Tensor:
    """Condition tokens turn with time alone, patches with time, row and column; a third of the channels each."""
    samples, _, width = x.shape
    part = 2 * ((attn.head_dim // 3) // 2)
    by_frame = x.view(samples, frames, -1, width)
    time = torch.arange(frames, device=x.device, dtype=torch.float32)
    queries, keys, values = [], [], []
    for index in range(CONDITIONS):
        query, key, value = _heads(attn, by_frame[:, :, index])
        for kept, heads in ((queries, query), (keys, key)):
            turned = torch.cat([turn(heads[..., :part], time), heads[..., part:]], dim=-1)
            kept.append(turned.unsqueeze(3))
        values.append(value.unsqueeze(3))
    query, key, value = _heads(attn, by_frame[:, :, CONDITIONS:].flatten(1, 2))
    places = torch.arange(frames * rows * columns, device=x.device)
    positions = (places // (rows * columns), places % (rows * columns) // columns, places % columns)
    scales = (1.0, 1.0, rows / columns)
    for kept, heads in ((queries, query), (keys, key)):
        turned = [
            turn(heads[..., axis * part : (axis + 1) * part], positions[axis].float() * scales[axis])
            for axis in range(3)
        ]
        kept.append(torch.cat([*turned, heads[..., 3 * part :]], dim=-1).unflatten(2, (frames, -1)))
    values.append(value.unflatten(2, (frames, -1)))
    q, k, v = (torch.cat(each, dim=3).flatten(2, 3) for each in (queries, keys, values))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    output: Tensor = attn.proj(mixed.transpose(1, 2).flatten(2))
    return output


def _heads(attn: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [samples, heads, tokens, head_dim]."""
    split = attn.qkv(x).unflatten(-1, (3, attn.heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    return split[0], split[1], split[2]


def turn(heads: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions as released: the list of frequencies laid twice, end to end, over neighboring pairs."""
    half = heads.shape[-1] // 2
    frequencies = 1.0 / 10000 ** (torch.arange(half, device=heads.device, dtype=torch.float32) / half)
    angles = (positions.unsqueeze(-1) * frequencies).repeat(1, 2)
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    crossed = torch.stack([-odd, even], dim=-1).flatten(-2)
    return heads * angles.cos() + crossed * angles.sin()


def poses_after(poses: NDArray[np.float32], actions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Poses after the actions, one robot arm at a time."""
    reached = []
    for pose, action in zip(poses, actions, strict=True):
        rotation = _matrix(action[3:6]) @ _matrix(pose[3:6])
        grip = np.clip(pose[6:] + action[6:], 0, 1)
        reached.append(np.concatenate([pose[:3] + action[:3], _angles(rotation), grip]))
    return np.stack(reached).astype(np.float32)


def _matrix(angles: NDArray[np.float32]) -> NDArray[np.float64]:
    """About x, then y, then z, all axes fixed."""
    (a, b, c), (x, y, z) = np.cos(angles.astype(float)), np.sin(angles.astype(float))
    about_x = np.array([[1, 0, 0], [0, a, -x], [0, x, a]])
    about_y = np.array([[b, 0, y], [0, 1, 0], [-y, 0, b]])
    about_z = np.array([[c, -z, 0], [z, c, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _angles(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    level = math.hypot(rotation[0, 0], rotation[1, 0])
    roll, yaw = math.atan2(rotation[2, 1], rotation[2, 2]), math.atan2(rotation[1, 0], rotation[0, 0])
    return np.array([roll, math.atan2(-rotation[2, 0], level), yaw])
