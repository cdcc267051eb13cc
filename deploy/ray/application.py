"""The Ray Serve deployment: replicas of the application, their number, and routing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deploy.ray.replica import Replica
from deploy.ray.routing import StickyRouter
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from server import config as reading
from server.config import Settings


class RayReplica(Replica):
    """A replica that ends when Ray says so, by what Ray awaits then."""

    async def __del__(self) -> None:
        await self.stop()


class Scale(BaseModel):
    """How many replicas there are, and what each takes. One replica has one engine for each of its devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    calls_per_replica: float = Field(
        default=8.0, gt=0, description="calls and control streams in progress in one replica before another is started"
    )
    upscale_delay_s: float = Field(default=5.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0, description="sessions of a replica that ends are lost")
    num_cpus: float = Field(default=1.0, ge=0, description="of each replica, as Ray counts them")
    num_gpus: float = Field(default=0.0, ge=0, description="of each replica; Ray shows it no others")

    @model_validator(mode="after")
    def _ordered(self) -> Scale:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas must be at most max_replicas = {self.max_replicas}, got {self.min_replicas}"
            )
        return self


def deployment(settings: Settings, scale: Scale) -> serve.Application:
    """The application to hand to `serve.run`."""
    limit = settings.limits.concurrent_calls
    made = serve.deployment(
        serve.ingress()(RayReplica),
        name="presage",
        # One more than the service's own limit: it refuses by name, and probes pass above it.
        max_ongoing_requests=2 * limit + 16,
        max_queued_requests=limit,
        autoscaling_config=AutoscalingConfig(
            target_ongoing_requests=scale.calls_per_replica,
            **scale.model_dump(exclude={"calls_per_replica", "num_cpus", "num_gpus"}),
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=StickyRouter, request_router_kwargs={"num_fallback_replicas": 0}
        ),
        graceful_shutdown_timeout_s=settings.shutdown_grace_s + 10.0,
        health_check_period_s=10.0,
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
    )
    return made.bind(settings)


def build(scale: Scale) -> serve.Application:
    """For `serve deploy`: its file gives the scale as `args`; PRESAGE_* variables say the rest, as everywhere."""
    return deployment(reading.load(), scale)
