"""The engine process: loads the models, warms them up, then serves jobs until the front closes the socket.

One thread, one piece of work at a time; messages are read between pieces, so that a cancelled call costs at most one of
them. The front's side is `engine`.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import time
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from presage.fields import from_fields
from presage.values import ActionSpec, ImageSpec, Model

from model.interface import LoadedModel
from model.package import ActionSpec as PackagedActions
from model.package import PackageConfig, PackageError, PlannerDefaults, weights_kept
from model.registry import load
from model.runtime.devices import usable
from model.runtime.memory import keep_memory
from planner.world_model import WorldModel
from server.engine.ipc import EngineChannel
from server.engine.messages import (
    ITERATION_STEPS,
    Cancel,
    Done,
    EngineSettings,
    Failed,
    FromEngine,
    Loaded,
    LoadFailed,
    PlanJob,
    Ready,
    SearchSize,
    ServedModel,
    Start,
    Submit,
    ToEngine,
    needed_iterations,
)
from server.values.calls import Frame
from server.worker import batch_invariance, cuda_graphs, model_adapter, precision
from server.worker.batch_invariance import BatchSizes
from server.worker.heartbeat import Watchdog, heartbeat_thread
from server.worker.precision import Verdict, Work
from server.worker.scheduling.background_jobs import BackgroundJobs
from server.worker.scheduling.failures import failed
from server.worker.scheduling.plan_scheduler import PlanScheduler

WARM_UP = 0  # the number of the engine's own calls, whose results go nowhere
WARM_UP_ITERATIONS = 3
SERIAL_STEPS, SERIAL_RUNS = 4, 3
BEATS_IN_SILENCE = 8  # heartbeats per heartbeat timeout


def run(end: socket.socket, settings: EngineSettings) -> None:
    """The process: returns when the front has gone, or when a model cannot be loaded."""
    # Ctrl-C and a supervisor's SIGTERM reach the whole process group; when an engine ends is the front's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(settings.nice)  # where both want a core the front has it: replies leave on time, and health is answered
    keep_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    channel = EngineChannel(end)
    try:
        try:
            models, worlds, sizes, described, threads = _load_and_describe(settings)
            channel.send(Loaded(described, threads))
            engine = Engine(models, worlds, sizes, channel, settings)
            engine.warm_up()
        except (PackageError, RuntimeError) as error:
            channel.send(LoadFailed(" ".join(str(error).split())))
            return
        with heartbeat_thread(engine.watchdog, channel.send, settings.silence_s / BEATS_IN_SILENCE):
            engine.serve()
    except OSError:  # the front has gone
        return


def _load_and_describe(
    settings: EngineSettings,
) -> tuple[dict[str, LoadedModel], dict[str, WorldModel], dict[str, BatchSizes], tuple[ServedModel, ...], int]:
    """The models, how searches see them, how many requests to each are computed together, what the front must know of
    them, and the number of threads.

    Raises PackageError, also for files that cannot be read: OSError is how the channel says the front has gone.
    """
    try:
        with weights_kept():
            threads, verdicts = tune(load_all(settings), settings)
        worlds: dict[str, WorldModel] = {}
        sizes, described = {}, []
        for name, (model, verdict) in verdicts.items():
            size = own_search(model.package.config.planner)
            worlds[name], told = cuda_graphs.searched(model, size, settings.graphs, settings.max_batch, ITERATION_STEPS)
            most = settings.max_batch
            exact = settings.batches == "exact"
            sizes[name] = (
                batch_invariance.measured(model, worlds[name], size, most) if exact else BatchSizes(most, most)
            )
            described.append(describe(name, model, verdict, told, sizes[name]))
        return {name: model for name, (model, _) in verdicts.items()}, worlds, sizes, tuple(described), threads
    except OSError as error:
        where = error.filename or ", ".join(settings.models)
        raise PackageError(f"{where} cannot be read: {error.strerror or error}") from None


def load_all(settings: EngineSettings) -> dict[str, LoadedModel]:
    """The models by their own names, in order. Raises PackageError, and RuntimeError for a device there is not."""
    models: dict[str, LoadedModel] = {}
    for wanted in settings.models:
        model = (
            load(wanted, usable(settings.device))
            if settings.loader is None
            else settings.loader(wanted, settings.device)
        )
        name = model.package.config.name
        if name in models:
            raise PackageError(f"models must have different names, got {name} twice")
        models[name] = model
    return models


def tune(
    models: dict[str, LoadedModel], settings: EngineSettings
) -> tuple[int, dict[str, tuple[LoadedModel, Verdict]]]:
    """The number of threads and every model in the precision to serve it in, chosen as the settings say."""
    first = next(iter(models.values()))
    if not settings.threads and first.device.type == "cpu":
        work = Work.of(first, own_search(first.package.config.planner))
        torch.set_num_threads(precision.fastest_threads(lambda: work.done_by(first), precision.available_cpus()))
    verdicts: dict[str, tuple[LoadedModel, Verdict]] = {}
    for name, model in models.items():
        if settings.precision == "auto":
            verdicts[name] = precision.with_best_precision(model, own_search(model.package.config.planner))
        else:
            asked = precision.in_precision(model, settings.precision)
            verdicts[name] = asked, Verdict(asked.dtype, "as set")
    return torch.get_num_threads(), verdicts


def describe(name: str, model: LoadedModel, verdict: Verdict, graphed: str, sizes: BatchSizes) -> ServedModel:
    """What the front must know of a model; `graphed` says which of its rollouts are graphs, `sizes` what is batched."""
    config = model.package.config
    action, search = config.action, own_search(config.planner)
    dtype = str(verdict.dtype).removeprefix("torch.")
    reply = from_fields(
        Model,
        config,
        model.package,
        name=name,
        image=from_fields(ImageSpec, config.image, cameras=1),
        action=None if action is None else _action_spec(action),
        planner=search.settings,
        card=model.package.card(),
        execute=config.planner.execute if action is not None else 0,
        computes=f"{dtype} on {model.device}; {graphed}; {sizes.described()}",
        license=str(config.training.get("license", "")),
        measures_goals=model_adapter.measures_goals(model),
    )
    return ServedModel(
        reply,
        search if action is not None else None,
        str(model.device),
        dtype,
        verdict.why,
        graphed,
        proposes=model.proposer is not None,
        digest=model.package.digest(),
    )


def _action_spec(action: PackagedActions) -> ActionSpec:
    """What of a package's actions concerns a caller."""
    return from_fields(ActionSpec, action, rest=action.at_rest)


def own_search(defaults: PlannerDefaults) -> SearchSize:
    """A model's own search settings."""
    known = {each.name for each in fields(SearchSize)}
    stated = {name: value for name, value in vars(defaults).items() if name in known}
    return SearchSize(**stated, needed=needed_iterations(defaults.optimizer, defaults.iterations, defaults.iterations))


class Engine:
    """The loop around searches and background_jobs."""

    def __init__(
        self,
        models: dict[str, LoadedModel],
        worlds: dict[str, WorldModel],
        sizes: dict[str, BatchSizes],
        channel: EngineChannel,
        settings: EngineSettings,
    ) -> None:
        self._models, self._channel = models, channel
        steps = ITERATION_STEPS
        self._scheduler = PlanScheduler(models, settings.max_batch, steps, self._send, time.monotonic, worlds, sizes)
        self._background_jobs = BackgroundJobs(models, self._scheduler, steps, self._send, time.monotonic)

    @property
    def watchdog(self) -> Watchdog:
        """What it is at."""
        return self._scheduler.watchdog

    def warm_up(self) -> None:
        """Use every model as calls will. Raises RuntimeError where one cannot plan from a black image to itself."""
        self._use_each()  # first runs build caches and kernels
        self._scheduler.measure_anew()
        self._use_each()
        gc.collect()
        gc.freeze()  # what lives now lives on: later collections need not look at it

    def serve(self) -> None:
        """Say that the models are warm, and work until the front leaves."""
        self._send(Ready({name: self._scheduler.pace(name) for name in self._models}))
        while True:
            idle = not (self._scheduler.busy or self._background_jobs.busy)
            messages = self._channel.receive(None if idle else 0.0)
            if messages is None:
                return
            for message in messages:
                self._take(message)
            callers = self._scheduler.callers | self._background_jobs.callers
            if callers:
                caller = self._scheduler.fair.next(callers)
                self._scheduler.step(caller)
                self._background_jobs.step(caller)
            else:
                self._scheduler.weights.clear()

    def _take(self, message: ToEngine) -> None:
        match message:
            case Cancel(number):
                self._scheduler.cancel(number)
                self._background_jobs.cancel(number)
            case Submit(number, PlanJob() as job, caller, weight):
                self._scheduler.weights[caller] = weight
                self._scheduler.add(number, job, caller)
            case Submit(number, job, caller, weight):
                try:
                    self._scheduler.weights[caller] = weight
                    self._background_jobs.add(number, job, caller)
                except Exception as error:
                    self._send(failed(number, error))

    def _send(self, message: FromEngine) -> None:
        if not (isinstance(message, (Done, Failed)) and message.number == WARM_UP):
            self._channel.send(message)
        elif isinstance(message, Failed):
            raise RuntimeError(f"a model failed while warming up: {message.message}")

    def _use_each(self) -> None:
        """One encoding and a short plan with every model."""
        for name, model in self._models.items():
            config = model.package.config
            frame = _black(config)
            goal = model_adapter.to_host(model_adapter.encode_frames(model, [frame])[0])
            if config.action is None:
                continue
            size = replace(own_search(config.planner), iterations=WARM_UP_ITERATIONS)
            proprioception = None
            if config.proprioception_names:
                proprioception = np.zeros((1, len(config.proprioception_names)), np.float32)
            self._scheduler.add(WARM_UP, PlanJob(name, Start((frame,), (), proprioception), goal, size, seed=0))
            while self._scheduler.busy:
                self._scheduler.step()
            self._measure_serially(name, model, frame, proprioception)

    def _measure_serially(
        self, name: str, model: LoadedModel, frame: Frame, proprioception: NDArray[np.float32] | None
    ) -> None:
        """How long a model step takes however few the samples: what a long horizon costs."""
        start = Start((frame,), (), proprioception)
        latent = model_adapter.encode_frames(model, [frame])[0]
        context = model_adapter.context_of(model, start, latent, model_adapter.measured_at(start))
        actions = torch.zeros((1, 1, SERIAL_STEPS * model.block, len(model.package.config.action.names)))  # type: ignore[union-attr]
        world, least_s = model_adapter.world_model(model), math.inf
        for _ in range(SERIAL_RUNS):
            began = time.monotonic()
            with torch.no_grad():
                model_adapter.to_host(world.rollout(context, actions.to(model.device)))
            least_s = min(least_s, time.monotonic() - began)
        self._scheduler.least_serial_s[name] = least_s / SERIAL_STEPS


def _black(config: PackageConfig) -> Frame:
    """An image of the model's size."""
    return np.zeros((config.image.height, config.image.width, 3), np.uint8)
