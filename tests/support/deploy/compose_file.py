"""What this project may write in compose.yaml, as types: anything else there, a misspelt key above all, is an error.

A strict part of the Compose specification (https://github.com/compose-spec/compose-spec), not all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

Duration = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")]
Memory = Annotated[str, Field(pattern=r"^\d+[KMG]$")]
Cpus = Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Build(Strict):
    context: Literal["."]
    target: str
    args: dict[str, str] = {}


class Device(Strict):
    driver: str
    count: int
    capabilities: list[str]


class Limits(Strict):
    cpus: Cpus
    memory: Memory
    pids: int


class Reservations(Strict):
    devices: list[Device]


class Resources(Strict):
    limits: Limits
    reservations: Reservations | None = None


class Deploy(Strict):
    resources: Resources


class HealthCheck(Strict):
    test: list[str]
    interval: Duration
    timeout: Duration
    start_period: Duration
    retries: int


class Dependency(Strict):
    condition: Literal["service_healthy"]
    required: bool


class Attachment(Strict):
    aliases: list[str] = []


class Service(Strict):
    profiles: list[str]
    image: str
    build: Build
    init: bool
    restart: Literal["no", "unless-stopped"]
    read_only: bool
    user: Annotated[str, Field(pattern=r"^\d+:\d+$")]
    cap_drop: list[str]
    security_opt: list[str]
    command: list[str]
    secrets: list[str]
    networks: list[str] | dict[str, Attachment]
    deploy: Deploy
    environment: dict[str, str] = {}
    tmpfs: list[str] = []
    volumes: list[str] = []
    ports: list[str] = []
    stop_grace_period: Duration | None = None
    healthcheck: HealthCheck | None = None
    depends_on: dict[str, Dependency] = {}


class Secret(Strict):
    file: str


class ComposeFile(Strict):
    name: str
    services: dict[str, Service]
    networks: dict[str, dict[str, str]]
    secrets: dict[str, Secret]


def read(path: Path) -> ComposeFile:
    """Raises pydantic's ValidationError for what is not allowed."""
    content = yaml.safe_load(path.read_text())
    return ComposeFile.model_validate({name: value for name, value in content.items() if not name.startswith("x-")})
