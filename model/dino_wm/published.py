"""The planners that jepa-wms released: whose file is whose, what it must be run with, and the statistics of its data.

The files hold predictors alone. Which encoder they need, their shapes, statistics and searches are in the published
code and settings (facebookresearch/jepa-wms at 6eafb14), from which this table is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.dino_wm.config import DinoConfig, PredictorConfig
from model.package import ActionSpec, PlannerDefaults
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Color

ADDRESS = "https://dl.fbaipublicfiles.com/jepa-wms/"
SOURCE = "facebookresearch/jepa-wms at 6eafb14"
LICENSE = "CC-BY-NC 4.0 (non-commercial: for research only)"
VERIFIED = "networks of the same code at small sizes equal the published implementation's; no real weights were run"
HALF: Color = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class PublishedEncoder:
    """An image encoder that a planner was trained on, published by others."""

    name: str
    file: str
    address: str
    license: str
    config: DinoConfig | None
    """None: an encoder that Presage does not run."""


DINOV2 = PublishedEncoder(
    name="dinov2_vits14",
    file="dinov2_vits14_pretrain.pth",
    address="https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/",
    license="Apache-2.0",
    config=DinoConfig(width=384, depth=12, heads=6, mlp_hidden=1536),
)
DINOV3 = PublishedEncoder(
    name="dinov3_vitl16",
    file="dinov3_vitl16_pretrain_lvd1689m-7c1da9a5.pth",
    address="",
    license="DINOv3 License (its own)",
    config=None,
)


@dataclass(frozen=True)
class Task:
    """What a planner acts in: its actions and proprioception, with the statistics of the published data."""

    action: ActionSpec
    measured: tuple[str, ...] = ()
    measured_mean: tuple[float, ...] = ()
    measured_std: tuple[float, ...] = ()


TASKS = {
    "pusht": Task(
        action=ActionSpec(
            names=("x", "y"),
            units=("100 px", "100 px"),
            low=(-1.0, -1.0),
            high=(1.0, 1.0),
            rate_hz=10.0,
            block=5,
            mean=(-0.008700000122189522, 0.006800000090152025),
            std=(0.20190000534057617, 0.20020000636577606),
        ),
        measured=("x", "y", "x velocity", "y velocity"),
        measured_mean=(236.61549377441406, 264.5674133300781, -2.9303202629089355, 2.543079137802124),
        measured_std=(101.12020111083984, 87.01119995117188, 74.8455581665039, 74.14009094238281),
    ),
    "pointmaze": Task(
        action=ActionSpec(
            names=("x", "y"),
            units=("1", "1"),
            low=(-1.0, -1.0),
            high=(1.0, 1.0),
            rate_hz=100.0,
            block=5,
            mean=(7.821338658686727e-05, 0.0006003659800626338),
            std=(0.5769129991531372, 0.577587902545929),
        ),
        measured=("x", "y", "x velocity", "y velocity"),
        measured_mean=(1.8130563497543335, 1.9377127885818481, -0.0039275349117815495, -0.019777977839112282),
        measured_std=(1.0055010318756104, 0.9630089402198792, 1.6802769899368286, 1.9319307804107666),
    ),
    "wall": Task(
        action=ActionSpec(
            names=("x", "y"),
            units=("px", "px"),
            low=(-3.0, -3.0),
            high=(3.0, 3.0),
            rate_hz=10.0,
            block=5,
            mean=(-0.005564616061747074, 0.013197818771004677),
            std=(0.752332866191864, 0.7466897964477539),
        ),
        measured=("x", "y"),
        measured_mean=(31.89451026916504, 31.81402015686035),
        measured_std=(17.663522720336914, 17.27516746520996),
    ),
    "metaworld": Task(
        action=ActionSpec(
            names=("x", "y", "z", "gripper"),
            units=("1", "1", "1", "1"),
            low=(-1.0,) * 4,
            high=(1.0,) * 4,
            rate_hz=80.0,
            block=5,
            mean=(0.005723577458411455, 0.15735651552677155, -0.1396457850933075, 0.1998193860054016),
            std=(0.7359239459037781, 0.73408043384552, 0.7182977199554443, 0.743205726146698),
        ),
        measured=("x", "y", "z", "gripper"),
        measured_mean=(-0.0029392109718173742, 0.6544238924980164, 0.15410053730010986, 0.6402314901351929),
        measured_std=(0.10431358963251114, 0.11230525374412537, 0.07981759309768677, 0.26138949394226074),
    ),
    "droid": Task(
        action=ActionSpec(
            names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            units=("m", "m", "m", "rad", "rad", "rad", "1"),
            low=(-0.1,) * 6 + (-0.75,),
            high=(0.1,) * 6 + (0.75,),
            rate_hz=4.0,
            block=1,
            mean=(0.0,) * 7,
            std=(1.0,) * 7,
        ),
    ),
}


@dataclass(frozen=True)
class ReleasedPlanner:
    """One planner: a predictor's file, and what belongs to it."""

    name: str
    file: str
    """On Meta's file host; on the Hugging Face hub it is called `{name}.pth.tar`."""
    task: str
    encoder: PublishedEncoder
    predictor: PredictorConfig
    image: int
    pixel_mean: Color
    pixel_std: Color
    alpha: float
    """Weight of proprioception in the published cost."""
    planner: PlannerDefaults
    license: str = LICENSE
    verified: str = VERIFIED

    @property
    def address(self) -> str:
        return ADDRESS + self.file

    @property
    def names(self) -> tuple[str, str]:
        """What its file is called in either place."""
        return f"{self.name}.pth.tar", self.file


_SEARCHES = {
    "pusht": PlannerDefaults(samples=300, iterations=30, elites=10, horizon=6, execute=30, optimizer="jepa_wms"),
    "metaworld": PlannerDefaults(samples=300, iterations=15, elites=10, horizon=6, execute=15, optimizer="jepa_wms"),
    "droid": PlannerDefaults(samples=300, iterations=15, elites=10, horizon=3, execute=3, optimizer="jepa_wms_droid"),
}
_ADALN = PredictorConfig(
    kind="adaln", latent=384, action=10, depth=6, heads=16, width=384, mlp_hidden=1600, proprioception=4,
    proprioception_width=16,
)  # fmt: skip
_VIT = PredictorConfig(
    kind="vit", latent=384, action=10, depth=6, heads=16, action_width=10, mlp_hidden=2048, proprioception=4,
    proprioception_width=20, layer_norm_eps=1e-5,
)  # fmt: skip


def _planner(
    name: str, file: str, task: str, predictor: PredictorConfig, encoder: PublishedEncoder = DINOV2, image: int = 224
) -> ReleasedPlanner:
    adaptive = predictor.kind == "adaln"
    return ReleasedPlanner(
        name=name,
        file=file,
        task=task,
        encoder=encoder,
        predictor=predictor,
        image=image,
        pixel_mean=IMAGENET_MEAN if adaptive else HALF,
        pixel_std=IMAGENET_STD if adaptive else HALF,
        alpha=0.0 if task == "droid" else 0.1,
        planner=_SEARCHES.get(task, _SEARCHES["pusht"]),
    )


RELEASED: tuple[ReleasedPlanner, ...] = (
    _planner("jepa_wm_pusht", "pt_jepa-wm.pth.tar", "pusht", _ADALN),
    _planner("jepa_wm_pointmaze", "mz_jepa-wm.pth.tar", "pointmaze", _ADALN),
    _planner("jepa_wm_wall", "wall_jepa-wm.pth.tar", "wall", replace(_ADALN, proprioception=2)),
    _planner("jepa_wm_metaworld", "mw_jepa-wm.pth.tar", "metaworld", replace(_ADALN, action=20)),
    _planner(
        "jepa_wm_droid",
        "droid_jepa-wm_noprop.pth.tar",
        "droid",
        PredictorConfig(kind="adaln", latent=1024, action=7, depth=12, heads=16, width=1024, mlp_hidden=4096),
        DINOV3,
        256,
    ),
    _planner("dino_wm_pusht", "pt_dino-wm.pth.tar", "pusht", _VIT),
    _planner("dino_wm_pointmaze", "mz_dino-wm.pth.tar", "pointmaze", _VIT),
    _planner("dino_wm_wall", "wall_dino-wm.pth.tar", "wall", replace(_VIT, proprioception=2, proprioception_width=10)),
    _planner("dino_wm_metaworld", "mw_dino-wm.pth.tar", "metaworld", replace(_VIT, action=20, action_width=20)),
    _planner(
        "dino_wm_droid",
        "droid_dino-wm_noprop.pth.tar",
        "droid",
        replace(_VIT, action=7, proprioception=0, proprioception_width=0),
    ),
)


def by_name(name: str) -> ReleasedPlanner | None:
    """The planner of that name; None for another's."""
    return next((planner for planner in RELEASED if planner.name == name), None)
