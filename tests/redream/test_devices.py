"""Every stage's computation with tensors that say `cuda` (see simulated_cuda.py): what would fail or wait on a GPU."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from redream.cameras import orbit, sample_cameras
from redream.clip import Clip
from redream.distill.loop import create_state, distill
from redream.distill.particle import load_particles
from redream.export import export_mesh
from redream.field.hash_grid import HashGrid, why_not_tinycudann, why_not_triton
from redream.images import Rendering, composite, to_images
from redream.metrics.a_lpips import ALpips
from redream.metrics.front_count import wrong_front_share
from redream.metrics.perceptual import PerceptualNet
from redream.metrics.report import evaluate_views
from redream.orientation import find_front
from redream.presets import smoke
from redream.prior.adaptation import adapt_prior, sample_views
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.render.mesh import AssetViews
from redream.settings import AdaptationConfig, CameraConfig, DistillConfig, FieldConfig, OrientationConfig, PriorConfig


def neighbour(name: str) -> ModuleType:
    """Import a module of this folder, which is not a package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


simulated = neighbour("simulated_cuda")

# How often one step of training may wait for the GPU. These numbers may only fall.
WAITS_PER_STEP = {"sds": 3, "vsd": 4, "redream": 4}
WAITS_OF_A_SPLIT_VIEW = 1  # more, where a view has too many samples to be rendered at once
WAITS_PER_ADAPTATION_STEP = 1

CAMERAS = CameraConfig(camera_distance=(1.4, 1.6), fovy_deg=(42.0, 48.0), elevation_deg=(0.0, 30.0))
FIELD = FieldConfig(
    num_levels=2,
    log2_hashmap_size=10,
    base_resolution=4,
    hidden_dim=8,
    radius=0.55,
    num_samples_per_ray=16,
    occupancy_resolution=8,
    implementation="torch",
)
CONFIG = DistillConfig(
    num_steps=5,
    warm_up_steps=2,
    low_resolution=8,
    high_resolution=16,
    high_resolution_from_step=4,
    anneal_from_step=4,
    variational_rank=2,
    occupancy_every=4,
)
PROMPT = "a red car"


def views_of_a_ball(color: tuple[float, float, float], num_views: int = 4) -> AssetViews:
    camera = sample_cameras(CAMERAS, num_views, 16, torch.Generator().manual_seed(1))
    y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    opacity = ((x**2 + y**2) < 25).float()[None, ..., None].expand(num_views, -1, -1, -1)
    return AssetViews(Rendering(opacity * torch.tensor(color), opacity, opacity * 1.5), camera)


ASSETS = [views_of_a_ball((0.8, 0.1, 0.1)), views_of_a_ball((0.1, 0.1, 0.8))]


@pytest.fixture
def cuda() -> Iterator:
    with simulated.simulated_cuda() as cuda:
        yield cuda


def the_prior(folder: Path) -> StableDiffusionPrior:
    return StableDiffusionPrior(PriorConfig(model=str(folder), dtype="float32"), "cuda")


@pytest.mark.parametrize("method", ["sds", "vsd", "redream"])
def test_a_step_of_every_method_stays_on_its_device_and_rarely_waits(cuda, v_prior_folder, method) -> None:
    prior = the_prior(v_prior_folder)
    assets = ASSETS if method == "redream" else []
    config = replace(CONFIG, method=method)
    state = create_state(prior, assets, config, FIELD, seed=0)
    steps = distill(state, prior, PROMPT, assets, config, FIELD, CAMERAS, config.num_steps)
    next(steps)  # prompts are embedded before the first step
    for _ in range(1, config.num_steps):
        cuda.syncs.clear()
        step = next(steps)
        assert cuda.syncs.total() <= WAITS_PER_STEP[method], (step.step, cuda.syncs)
    assert {tensor.device.type for tensor in state.particles[0].state_dict().values()} == {"cuda"}


def test_a_view_in_chunks_waits_once_more_however_many_there_are_in_minutes(cuda, v_prior_folder) -> None:
    prior = the_prior(v_prior_folder)
    field_config = replace(FIELD, num_samples_per_ray=200, samples_per_chunk=2**12)
    config = replace(CONFIG, method="sds", low_resolution=32)
    state = create_state(prior, [], config, field_config, seed=0)
    steps = distill(state, prior, PROMPT, [], config, field_config, CAMERAS, 2)
    next(steps)
    cuda.syncs.clear()
    next(steps)
    assert cuda.syncs.total() <= WAITS_PER_STEP["sds"] + WAITS_OF_A_SPLIT_VIEW, cuda.syncs


def test_a_smaller_chunk_lowers_the_bytes_that_live_in_a_step(cuda, v_prior_folder) -> None:
    prior = the_prior(v_prior_folder)
    config = replace(CONFIG, method="sds", low_resolution=32)

    def peak(samples_per_chunk: int) -> int:
        field_config = replace(FIELD, num_samples_per_ray=60, samples_per_chunk=samples_per_chunk)
        state = create_state(prior, [], config, field_config, seed=0)
        before = cuda.peak_bytes = cuda.live_bytes
        list(distill(state, prior, PROMPT, [], config, field_config, CAMERAS, 1))
        return cuda.peak_bytes - before

    assert peak(2**12) < 0.5 * peak(2**30)


def test_a_step_on_a_gpu_is_that_of_a_cpu(cuda, v_prior_folder) -> None:
    def losses(device: str) -> list[dict[str, float]]:
        prior = StableDiffusionPrior(PriorConfig(model=str(v_prior_folder), dtype="float32"), device)
        state = create_state(prior, ASSETS, CONFIG, FIELD, seed=0)
        return [s.losses for s in distill(state, prior, PROMPT, ASSETS, CONFIG, FIELD, CAMERAS, CONFIG.num_steps)]

    for there, here in zip(losses("cuda"), losses("cpu"), strict=True):
        assert there == pytest.approx(here, rel=1e-3)


def test_a_saved_run_goes_on_where_it_was_and_can_be_looked_at_without_a_gpu(cuda, v_prior_folder, tmp_path) -> None:
    def started() -> tuple:
        prior = the_prior(v_prior_folder)
        return prior, create_state(prior, ASSETS, CONFIG, FIELD, seed=0)

    def advance(prior, state, until: int) -> list:
        return list(distill(state, prior, PROMPT, ASSETS, CONFIG, FIELD, CAMERAS, until))

    prior, state = started()
    advance(prior, state, 2)
    state.save(tmp_path)
    expected = advance(prior, state, 3)
    prior, resumed = started()
    resumed.load(tmp_path)
    assert advance(prior, resumed, 3) == expected
    assert load_particles(tmp_path, FIELD)[0].asset_index.device.type == "cpu"
    assert load_particles(tmp_path, FIELD, "cuda")[0].asset_index.device.type == "cuda"


def test_text_encoder_and_decoder_leave_the_gpu_while_it_distils_and_come_back(cuda, v_prior_folder) -> None:
    prior = the_prior(v_prior_folder)
    before = prior.embed([PROMPT]).cpu()
    loaded = cuda.live_bytes
    config = replace(CONFIG, method="sds")
    list(distill(create_state(prior, [], config, FIELD, 0), prior, PROMPT, [], config, FIELD, CAMERAS, 1))
    resting = [*prior.text_encoder.parameters(), *prior.vae.decoder.parameters()]
    assert {parameter.device.type for parameter in resting} == {"cpu"}
    assert cuda.live_bytes < loaded
    assert torch.equal(prior.embed([PROMPT]).cpu(), before)
    assert prior.decode(torch.zeros(1, 4, 2, 2).cuda()).shape == (1, 3, 16, 16)


def test_adaptation_stays_on_its_device_and_its_adapter_loads_there(cuda, v_prior_folder, tmp_path) -> None:
    prior = the_prior(v_prior_folder)
    config = AdaptationConfig(num_steps=3, validate_every=3, batch_size=2, num_samples_per_view=1, sample_steps=2)
    steps = adapt_prior(prior, ASSETS, ["a", "b"], config, CAMERAS, (0.0, 1.0), torch.Generator())
    next(steps)
    cuda.syncs.clear()
    next(steps)
    assert cuda.syncs.total() <= WAITS_PER_ADAPTATION_STEP, cuda.syncs
    assert list(steps)[-1].is_last
    assert sample_views(prior, PROMPT, config, seed=0).device.type == "cuda"
    prior.save_adapter(tmp_path)
    another = the_prior(v_prior_folder)
    another.load_adapter(tmp_path)
    assert another.prompt_embeds(PROMPT).by_view.device.type == "cuda"


def test_evaluation_takes_views_from_wherever_they_are(cuda) -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    judge = PerceptualNet.load("mini:judge", "cuda")
    clips = {"a": Clip("mini:clip-eval-a", "cuda")}
    azimuth_deg = torch.linspace(-180, 170, 6)
    report = evaluate_views(PROMPT, images, clips, [ALpips("mini:perceptual-a", "cuda")], False, (judge, azimuth_deg))
    assert report.num_views == 6
    share = report.wrong_front_share
    for views, angles in (
        (images.cuda(), azimuth_deg),
        (images.cuda(), azimuth_deg.cuda()),
        (images, azimuth_deg.cuda()),
    ):
        assert wrong_front_share(views, angles, judge) == share


def test_orientation_and_the_index_embed_on_their_device(cuda, tiny_clip_folder) -> None:
    clip = Clip(str(tiny_clip_folder), "cuda")
    config = OrientationConfig(num_poses=8)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert len(find_front(images, "a car", clip, config).scores) == 8
    assert clip.embed_prompt("a car").shape == (8,)


def test_a_particle_is_rendered_and_exported_on_its_device(cuda, v_prior_folder, tmp_path) -> None:
    config = replace(CONFIG, method="sds")
    state = create_state(the_prior(v_prior_folder), [], config, FIELD, seed=0)
    state.save(tmp_path)
    (particle,) = load_particles(tmp_path, FIELD, "cuda")
    with torch.no_grad():
        rendering = particle.render(orbit(2, 15.0, 1.5, 45.0, 16).to("cuda"), FIELD)
    assert to_images(composite(rendering, 1.0)).device.type == "cuda"
    export = replace(smoke().export, mesh_resolution=16, density_threshold=0.5)
    export_mesh(particle.field.density_and_color, export, FIELD.radius, tmp_path / "mesh.glb", device="cuda")
    assert (tmp_path / "mesh.glb").stat().st_size > 1000


def test_mistakes_are_noticed(cuda) -> None:
    here, there = torch.ones(3), torch.ones(3).cuda()
    generator = torch.Generator()
    with pytest.raises(simulated.DeviceMistake, match="both cuda:0 and cpu"):
        _ = here + there
    with pytest.raises(simulated.DeviceMistake, match="draws on the GPU"):
        torch.randn(3, device="cuda")
    with pytest.raises(simulated.DeviceMistake, match="draws on the GPU"):
        torch.empty(3, device="cuda").normal_()
    with pytest.raises(simulated.DeviceMistake, match="draws on the GPU"):
        torch.rand_like(there)
    with pytest.raises(simulated.DeviceMistake, match="draws on the GPU"):
        torch.rand(3, generator=generator, device="cuda")
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    for waits in (there.tolist, there.cpu, lambda: float(there[0]), lambda: there[there > 0], lambda: here.to("cuda")):
        before = cuda.syncs.total()
        waits()
        assert cuda.syncs.total() == before + 1


def test_a_hash_grid_without_working_kernels_says_so_once_and_computes(cuda, caplog) -> None:
    from redream.field import hash_grid

    for cached in (hash_grid._fastest_on, hash_grid._launch_problem):
        cached.cache_clear()
    try:
        grid = HashGrid(2, 2, 8, 4, 2.0, torch.Generator().manual_seed(0)).to("cuda")
        for _ in range(2):
            assert grid(torch.full((3, 3), 0.4).cuda()).device.type == "cuda"
        assert len([r for r in caplog.records if "runs in plain PyTorch" in r.message]) == 1
        assert why_not_triton() and "\n" not in why_not_triton()
        assert why_not_tinycudann()
    finally:
        for cached in (hash_grid._fastest_on, hash_grid._launch_problem):
            cached.cache_clear()
