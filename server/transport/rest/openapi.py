"""The OpenAPI document: FastAPI's, with the errors that every route shares and the form of clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from server.errors import Reason
from server.transport.error_replies import PROBLEM_JSON
from server.transport.rest.json_codec import Count, Name, Real
from server.transport.rest.middleware import CLASSIFICATIONS, CLIPS
from server.transport.rest.problems import ProblemReply
from server.values.calls import ClassifyClipRequest, EmbeddingKind

_TEMPLATE = "#/components/schemas/{model}"


class UploadForm(BaseModel):
    """What may stand beside a clip in every uploaded form."""

    model_config = ConfigDict(extra="forbid")
    model: Name = ""
    fps: Real | None = None
    frames: Count | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(default=None, description="Of the file")


class ClipForm(UploadForm):
    """What may stand beside a clip to embed."""

    kind: EmbeddingKind = "pooled"
    goal_id: Name = ""
    step_distances: bool = Field(default=False, description="Send the distance from each frame to the next one")


class ClassifyForm(UploadForm):
    """What may stand beside a clip to classify."""

    top_k: Count = Field(default=ClassifyClipRequest.top_k, description="Classes to send back, the likeliest first")


def document(app: FastAPI, bodies: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The document of `app`, whose routes are complete; `bodies` are the models of POST's JSON, by path."""
    made = FastAPI.openapi(app)
    schemas = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = ProblemReply.model_json_schema(ref_template=_TEMPLATE)
    schemas.update(problem.pop("$defs"), ProblemReply=problem)
    failures = _failures()
    for operations in made["paths"].values():
        for operation in operations.values():
            operation["responses"].update(failures)
    references, read = models_json_schema([(model, "validation") for model in bodies.values()], ref_template=_TEMPLATE)
    schemas.update(read.get("$defs", {}))
    for path, model in bodies.items():
        content = {"application/json": {"schema": references[(model, "validation")]}}
        made["paths"][path]["post"]["requestBody"] = {"content": content, "required": True}
    for path, kind in ((CLIPS, ClipForm), (CLASSIFICATIONS, ClassifyForm)):
        form = {"content": {"multipart/form-data": {"schema": _clip_form(kind)}}, "required": True}
        made["paths"][path]["post"]["requestBody"] = form
    made["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    made["security"] = [{"bearer": []}, {"key": []}, {}]
    return made


def _failures() -> dict[str, Any]:
    """Every status of the error table, with the reasons behind it."""
    titles: dict[int, list[str]] = {}
    for reason in Reason:
        titles.setdefault(reason.fault.http_status, []).append(f"{reason.name}: {reason.fault.title}")
    content = {PROBLEM_JSON: {"schema": {"$ref": _TEMPLATE.format(model="ProblemReply")}}}
    return {str(status): {"description": "; ".join(lines), "content": content} for status, lines in titles.items()}


def _clip_form(kind: type[UploadForm]) -> dict[str, Any]:
    clip = {"type": "string", "contentMediaType": "application/octet-stream", "description": "The video file"}
    return {
        "type": "object",
        "required": ["clip"],
        "additionalProperties": False,
        "properties": {"clip": clip, **kind.model_json_schema()["properties"]},
    }
