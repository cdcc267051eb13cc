"""Background jobs on a clock that only the model's work moves: steps, plans beside them, cancelling, results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from server.engine.messages import Done, EncodeJob, RolloutDone, RolloutJob, Start
from tests.support.server.linear import CONFIGS, Linear, frame, latent
from tests.support.server.service_bench import Bench, job, measured


def test_background_jobs_do_not_make_plans_late() -> None:
    bench = measured(Bench())
    candidates = np.zeros((1024, 6, 2), np.float32)
    background_job = RolloutJob("linear", Start((frame(0, 0),)), candidates, latent(0.5, 0.5), costs_only=True)
    bench.background_jobs.add(9, background_job)
    bench.run()  # how long a step of it takes is known from now on: half a second
    wanted = job(bench, left_s=0.4)
    bench.scheduler.add(1, wanted)
    bench.background_jobs.add(10, background_job)
    bench.run()
    assert wanted.deadline is not None
    assert bench.at[1] <= wanted.deadline
    assert bench.plan(1).iterations_done >= 1
    assert bench.at[10] > wanted.deadline


def test_a_cancelled_job_stops_between_two_steps() -> None:
    bench = Bench()
    bench.background_jobs.add(1, EncodeJob("linear", (frame(0, 0),) * 100))
    bench.background_jobs.step()
    bench.background_jobs.cancel(1)
    assert not bench.background_jobs.busy
    assert bench.sent == {}


def test_history_and_proprioception_reach_the_model() -> None:
    bench = Bench("historian")
    start = Start((frame(0.6, 0.5),), (latent(0.0, 0.5), latent(0.3, 0.5)), np.zeros((3, 1), np.float32))
    bench.scheduler.add(1, replace(job(bench), start=start))
    bench.background_jobs.add(2, RolloutJob("historian", start, np.zeros((1, 2, 2), np.float32)))
    bench.run()
    assert bench.done(1).latent.tolist() == latent(0.6, 0.5).tolist()
    message = bench.sent[2]
    assert isinstance(message, Done)
    assert isinstance(message.result, RolloutDone)
    assert message.result.latents is not None
    mean = (latent(0.0, 0.5) + latent(0.3, 0.5) + latent(0.6, 0.5)) / 3
    np.testing.assert_allclose(message.result.latents[0, 0], mean, rtol=1e-5)


def test_rollouts_in_pieces_equal_the_model() -> None:
    bench = Bench(max_steps=6)  # two candidates of three steps at a time
    generator = np.random.default_rng(0)
    candidates = generator.uniform(-0.5, 0.5, (5, 6, 2)).astype(np.float32)
    goal = latent(0.9, 0.1)
    bench.background_jobs.add(1, RolloutJob("linear", Start((frame(0.2, 0.4),)), candidates, goal))
    bench.run()
    message = bench.sent[1]
    assert isinstance(message, Done)
    assert isinstance(message.result, RolloutDone)
    context = (torch.tensor(latent(0.2, 0.4))[None],)
    expected = Linear(CONFIGS["linear"]).rollout(context, torch.tensor(candidates)[None])[0].numpy()
    assert message.result.latents is not None
    assert message.result.step_costs is not None
    np.testing.assert_allclose(message.result.latents, expected, rtol=1e-6)
    np.testing.assert_allclose(message.result.step_costs, np.square(expected - goal).mean(-1), rtol=1e-5)
    assert bench.model.batches == [1, 1, 1]  # 2 + 2 + 1 candidates
