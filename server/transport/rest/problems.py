"""Failures as the OpenAPI document describes them: problem details as in RFC 9457."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FaultReply(BaseModel):
    field: str
    rule: str
    value: str
    detail: str


class ProblemReply(BaseModel):
    """Problem details as in RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="The reason, the same as over gRPC")
    request_id: str
    errors: list[FaultReply]
    retry_after_s: float | None = None
