"""Every published file that can be imported: where it is, whose it is, and what it needs. One list for all families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from presage.fields import from_fields

from model.checkpoints.published import PROBES, PUBLISHED, RETRAINED, PublishedModel
from model.dino_wm.published import DINOV2, DINOV3
from model.dino_wm.published import RELEASED as PLANNERS
from model.lewm.published import KNOWN_STATISTICS
from model.lewm.published import RELEASED as LEWM
from model.lewm.published import VERIFIED as LEWM_VERIFIED
from model.vjepa2.action_predictor import ActionPredictorConfig


@dataclass(frozen=True)
class PublishedFile:
    """One file at its official place."""

    file: str
    folder: str
    """The address it is under."""
    sha256: str | None = None
    """None: no digest has been published."""
    bytes: int | None = None

    @property
    def address(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.file}"


@dataclass(frozen=True)
class Published:
    """A published model as users ask for it."""

    name: str
    family: str
    """What it is imported as; empty for what only another model's import asks for."""
    what: str
    files: tuple[PublishedFile, ...]
    license: str
    verified: str
    needs: str = ""
    """What an import must be given beside it."""
    refused: str = ""
    """Why it cannot be imported; empty where it can."""


def published() -> tuple[Published, ...]:
    """All of them, family by family."""
    return (*_vjepa2(), *_probes(), *_retrained(), *_lewm(), *_planners(), *_encoders())


def find(name: str) -> Published | None:
    """The one of that name."""
    return next((model for model in published() if model.name == name), None)


def _vjepa2() -> Iterator[Published]:
    for model in PUBLISHED:
        yield from_fields(
            Published,
            model,
            family="vjepa2",
            what=f"{_does(model)} ({model.encoder.depth} blocks of {model.encoder.width}, {model.image_size} px)",
            files=(PublishedFile(model.file, model.address.rsplit("/", 1)[0]),),
        )


def _does(model: PublishedModel) -> str:
    acts = isinstance(model.predictor, ActionPredictorConfig)
    return "encoder and action-conditioned predictor: plans" if acts else "encoder and masked predictor: embeds"


def _probes() -> Iterator[Published]:
    for probe in PROBES:
        yield from_fields(
            Published,
            probe,
            family="vjepa2",
            what=f"probe on {probe.encoder}: classifies clips of {probe.frames} frames",
            files=(PublishedFile(probe.file, probe.address.rsplit("/", 1)[0]),),
            needs=f"--encoder-weights (the file of {probe.encoder}); --labels to name its classes",
        )


def _retrained() -> Iterator[Published]:
    for predictor in RETRAINED:
        yield from_fields(
            Published,
            predictor,
            family="vjepa2",
            what=f"action-conditioned predictor on {predictor.encoder}: plans",
            files=(PublishedFile(predictor.file, predictor.address.rsplit("/", 1)[0]),),
            needs=f"--encoder-weights (the file of {predictor.encoder})",
        )


def _lewm() -> Iterator[Published]:
    for model in LEWM:
        known = model.name in KNOWN_STATISTICS
        yield from_fields(
            Published,
            model,
            family="lewm",
            what=f"encoder and action-conditioned predictor for {model.task}: plans",
            files=tuple(PublishedFile(file, model.address, digest) for file, digest in model.files),
            verified=LEWM_VERIFIED,
            needs="" if known else "--action-stats or --fit: its action statistics are not known",
        )


def _planners() -> Iterator[Published]:
    for planner in PLANNERS:
        runs = planner.encoder.config is not None
        yield from_fields(
            Published,
            planner,
            family="dino_wm",
            what=f"predictor on {planner.encoder.name} for {planner.task}: plans",
            files=(PublishedFile(planner.file, planner.address.rsplit("/", 1)[0]),),
            needs=f"--encoder-weights (the file of {planner.encoder.name})",
            refused="" if runs else f"its encoder {planner.encoder.name} is not run: Presage does not have its code",
        )


def _encoders() -> Iterator[Published]:
    assert not DINOV3.address  # under a license of its own, from its publisher alone
    yield Published(
        name=DINOV2.name,
        family="",
        what="image encoder that the planners of DINO-WM and jepa-wms need (12 blocks of 384, any size in 14 px)",
        files=(PublishedFile(DINOV2.file, DINOV2.address),),
        license=DINOV2.license,
        verified="equal to the official code at small sizes; no real weights were run",
        refused="it plans nothing by itself: give it to a planner's import with --encoder-weights",
    )
