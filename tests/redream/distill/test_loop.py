from dataclasses import replace

import pytest
import torch

from redream.cameras import orbit, sample_cameras
from redream.distill.loop import NonFiniteLoss, create_state, distill
from redream.distill.particle import load_particles
from redream.images import Rendering
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.render.mesh import AssetViews
from redream.settings import CameraConfig, DistillConfig, FieldConfig, PriorConfig
from tests.disk import watched_disk

CAMERAS = CameraConfig(camera_distance=(1.4, 1.6), fovy_deg=(42.0, 48.0), elevation_deg=(0.0, 30.0))
FIELD = FieldConfig(
    num_levels=2,
    log2_hashmap_size=10,
    base_resolution=4,
    hidden_dim=8,
    radius=0.55,
    num_samples_per_ray=16,
    occupancy_resolution=8,
)
CONFIG = DistillConfig(
    num_steps=8,
    warm_up_steps=3,
    low_resolution=8,
    high_resolution=16,
    high_resolution_from_step=5,
    anneal_from_step=4,
    variational_rank=2,
    occupancy_every=2,
    lr_variational=1e-2,
)
PROMPT = "a red car"


def ball_views(color: tuple[float, float, float], num_views: int = 6) -> AssetViews:
    """Views of a flat-coloured ball: closed form, no rasteriser."""
    camera = sample_cameras(CAMERAS, num_views, 16, torch.Generator().manual_seed(1))
    y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    opacity = ((x**2 + y**2) < 25).float()[None, ..., None].expand(num_views, -1, -1, -1)
    return AssetViews(Rendering(opacity * torch.tensor(color), opacity, opacity * 1.5), camera)


ASSETS = [ball_views((0.8, 0.1, 0.1)), ball_views((0.1, 0.1, 0.8))]


@pytest.fixture
def new_prior(v_prior_folder):
    return lambda: StableDiffusionPrior(PriorConfig(model=str(v_prior_folder)))


def run(prior, config, assets=ASSETS, state=None, until=None):
    state = state or create_state(prior, assets, config, FIELD, seed=0)
    steps = list(distill(state, prior, PROMPT, assets, config, FIELD, CAMERAS, until or config.num_steps))
    return state, steps


def weights(state) -> dict[str, torch.Tensor]:
    tensors = {f"{i}.{name}": value for i, p in enumerate(state.particles) for name, value in p.state_dict().items()}
    return {**tensors, **{f"variational.{i}": p.detach() for i, p in enumerate(state.variational)}}


@pytest.mark.parametrize("method", ["sds", "vsd", "redream", "sjc"])
def test_every_method_moves_the_field_and_reports_each_step(method, new_prior) -> None:
    config = replace(CONFIG, method=method)
    assets = ASSETS if method == "redream" else []
    prior = new_prior()
    state = create_state(prior, assets, config, FIELD, seed=0)
    before = {name: value.clone() for name, value in weights(state).items()}
    _, steps = run(prior, config, assets, state, until=4)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert not torch.equal(weights(state)["0.field.encoding.table"], before["0.field.encoding.table"])
    assert all(("variational" in step.losses) == (method in ("vsd", "redream")) for step in steps)
    assert [step.step for step in steps if "asset" in step.losses] == ([1, 2, 3] if method == "redream" else [])


def test_a_killed_run_that_resumes_ends_with_bit_identical_weights(new_prior, tmp_path) -> None:
    config = replace(CONFIG, num_particles=2, num_steps=6)
    undisturbed, _ = run(new_prior(), config)
    state, _ = run(new_prior(), config, until=4)
    state.save(tmp_path)
    prior = new_prior()
    resumed = create_state(prior, ASSETS, config, FIELD, seed=999)  # whatever it starts with is overwritten
    resumed.load(tmp_path)
    assert resumed.step == 4
    run(prior, config, state=resumed)
    expected, found = weights(undisturbed), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(undisturbed.generator.get_state(), resumed.generator.get_state())


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_old_ones_place(new_prior, tmp_path, monkeypatch) -> None:
    state, _ = run(new_prior(), CONFIG, until=1)
    with watched_disk() as disk:
        state.save(tmp_path / "new")
    assert disk.is_safe() and disk.renamed == [tmp_path / "new" / "state.pt"]
    before = (tmp_path / "new" / "state.pt").read_bytes()
    state.step = 2
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("the disk went away")))
    with pytest.raises(OSError, match="disk"):
        state.save(tmp_path / "new")
    assert (tmp_path / "new" / "state.pt").read_bytes() == before


def test_particles_draw_different_assets_and_keep_them(new_prior, tmp_path) -> None:
    config = replace(CONFIG, num_particles=2)
    state, _ = run(new_prior(), config, until=4)
    drawn = [int(particle.asset_index) for particle in state.particles]
    assert sorted(drawn) == [0, 1]
    state.save(tmp_path)
    assert [int(particle.asset_index) for particle in load_particles(tmp_path, FIELD)] == drawn


def test_saved_particles_render_as_they_did(new_prior, tmp_path) -> None:
    state, _ = run(new_prior(), CONFIG, until=4)
    state.save(tmp_path)
    camera = orbit(2, 15.0, 1.5, 45.0, 8)
    (again,) = load_particles(tmp_path, FIELD)
    assert torch.equal(again.render(camera, FIELD).rgb, state.particles[0].render(camera, FIELD).rgb)


def test_a_loss_that_is_not_finite_stops_with_step_and_t(new_prior) -> None:
    prior = new_prior()
    state, _ = run(prior, CONFIG, until=2)
    with torch.no_grad():
        next(state.particles[0].field.network.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"at step 2, t = \["):
        run(prior, CONFIG, state=state)


def test_the_warm_up_looks_beyond_the_hull_to_empty_what_surrounds_it(new_prior) -> None:
    prior = new_prior()
    state = create_state(prior, ASSETS, CONFIG, FIELD, seed=0)
    first = state.particles[0].occupancy.opacities.clone()
    run(prior, CONFIG, state=state, until=CONFIG.warm_up_steps)
    assert (state.particles[0].occupancy.opacities[first == 0] > 0).any()
