"""The multi-view prior: the same network from every form it is published in, and nothing else from those files."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import save_file
from torch import Tensor

from redream.cameras import Camera, cameras_at
from redream.prior import multi_view_files
from redream.prior.multi_view import JointViews, MultiViewPrior, camera_condition

LDM_CONFIG = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 16, "transformer_depth": 1, "context_dim": 16,
    "camera_dim": 16,
}  # fmt: skip
PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
OTHERS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "class_embedding.linear_1": "camera_embed.0", "class_embedding.linear_2": "camera_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0", "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.resnets.1": "output_blocks.3.0",
}  # fmt: skip


def ldm_name(name: str) -> str:
    """Rename a parameter of diffusers' to what MVDream's own code calls it."""
    for ours, theirs in OTHERS.items():
        if name.startswith(f"{ours}."):
            rest = name.removeprefix(f"{ours}.")
            layer, _, kind = rest.rpartition(".")
            return f"{theirs}.{RESNET[layer]}.{kind}" if "resnets" in ours else f"{theirs}.{rest}"
    raise AssertionError(name)


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    return tiny_unet()


def tiny_unet() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return UNet2DConditionModel(
            sample_size=8,  # so that no group of the norms is so small that rounding decides it
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),  # pyright: ignore[reportArgumentType]
            cross_attention_dim=16,
            use_linear_projection=True,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=16,
        ).eval()


def with_parts(folder: Path, prior_folder: Path) -> Path:
    for part in PARTS:
        shutil.copytree(prior_folder / part, folder / part)
    (folder / "unet").mkdir()
    return folder


def save_ours(network: UNet2DConditionModel, folder: Path, prior_folder: Path) -> str:
    network.save_pretrained(with_parts(folder, prior_folder) / "unet")
    return str(folder)


def save_lzq(network: UNet2DConditionModel, folder: Path, prior_folder: Path) -> str:
    network.save_pretrained(with_parts(folder, prior_folder) / "unet")
    config = json.loads((folder / "unet" / "config.json").read_text())
    plain = {name: value for name, value in config.items() if "class_embed" not in name}
    (folder / "unet" / "config.json").write_text(json.dumps(plain))
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    camera = {name.removeprefix("class_embedding."): state.pop(name) for name in [*state] if "class_emb" in name}
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "camera_proj").mkdir()
    save_file(camera, folder / "camera_proj" / "diffusion_pytorch_model.safetensors")
    return str(folder)


def save_ashawkey(network: UNet2DConditionModel, folder: Path, prior_folder: Path) -> str:
    unet = with_parts(folder, prior_folder) / "unet"
    (unet / "config.json").write_text(json.dumps({"_class_name": "MultiViewUNetModel", **LDM_CONFIG}))
    state = {ldm_name(name): value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, unet / "diffusion_pytorch_model.safetensors")
    return str(folder)


def save_original(network: UNet2DConditionModel, folder: Path, prior_folder: Path) -> str:
    folder.mkdir()
    state = {f"model.diffusion_model.{ldm_name(name)}": value for name, value in network.state_dict().items()}
    extra = {"first_stage_model.x": torch.zeros(1), "alphas_cumprod": torch.zeros(1)}  # other parts of the file
    save_file({name: value.contiguous() for name, value in {**state, **extra}.items()}, folder / "mv.safetensors")
    return f"{folder / 'mv.safetensors'}+{prior_folder}"


SAVES = [save_ours, save_lzq, save_ashawkey, save_original]


def cameras() -> Camera:
    azimuth = torch.tensor([10.0, 100.0, -170.0, -80.0] * 2)
    rest = (torch.full((8,), value) for value in (15.0, 1.5, 45.0))
    return cameras_at(azimuth, *rest, 16)


def predicted(prior: MultiViewPrior, camera: Camera | None = None) -> tuple[Tensor, Tensor]:
    x_t = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return prior.predict_eps_pair(x_t, torch.full((8,), 300), prior.prompt_embeds("a red car"), camera or cameras())


def joined_by_hand(network: UNet2DConditionModel, prior: MultiViewPrior) -> tuple[Tensor, Tensor]:
    """Run the network itself on one object at a time: the same, if views are joined within objects and only there."""
    embeds, labels = prior.prompt_embeds("a red car"), camera_condition(cameras())
    x_t = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    before = network.attn_processors
    network.set_attn_processor({n: JointViews(4) if "attn1" in n else p for n, p in before.items()})
    with torch.no_grad():
        rows = [
            torch.cat([network(x_t[i : i + 4], 300, e.expand(4, -1, -1), class_labels=labels[i : i + 4]).sample
                       for i in (0, 4)])
            for e in (embeds.uncond, embeds.plain)
        ]  # fmt: skip
    network.set_attn_processor(before)
    return rows[0], rows[1]


@pytest.mark.parametrize("save", SAVES)
def test_every_published_form_gives_the_same_network(
    save: Callable[..., str],
    network: UNet2DConditionModel,
    epsilon_prior_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(multi_view_files, "MVDREAM_UNET", LDM_CONFIG)
    prior = MultiViewPrior(save(network, tmp_path / "model", epsilon_prior_folder))
    expected = joined_by_hand(network, prior)
    for found, wanted in zip(predicted(prior), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*expected)


def test_views_and_cameras_are_felt(network: UNet2DConditionModel, epsilon_prior_folder: Path, tmp_path: Path) -> None:
    prior = MultiViewPrior(save_ours(network, tmp_path / "model", epsilon_prior_folder))
    _, joint = predicted(prior)
    turned = cameras_at(torch.arange(8.0) * 40, *(torch.full((8,), v) for v in (0.0, 1.5, 45.0)), 16)
    assert (predicted(prior, turned)[1] - joint).abs().max() > 1e-4
    prior.unet.set_attn_processor(AttnProcessor2_0())
    assert (predicted(prior)[1] - joint).abs().max() > 1e-4


def test_views_are_joined_in_every_self_attention_and_in_no_other(
    network: UNet2DConditionModel, epsilon_prior_folder: Path, tmp_path: Path
) -> None:
    prior = MultiViewPrior(save_ours(network, tmp_path / "model", epsilon_prior_folder))
    joint = {name for name, each in prior.unet.attn_processors.items() if isinstance(each, JointViews)}
    assert joint == {name for name in prior.unet.attn_processors if "attn1" in name} and joint


@pytest.mark.parametrize(
    ("azimuth", "elevation", "rows"),
    [
        (0.0, 0.0, [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]]),
        (90.0, 0.0, [[-1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]]),
        (0.0, 15.0, [[0, -0.2588, 0.9659, 0.9659], [1, 0, 0, 0], [0, 0.9659, 0.2588, 0.2588]]),
    ],
)
def test_camera_condition_is_the_references(azimuth: float, elevation: float, rows: list[list[float]]) -> None:
    camera = cameras_at(*(torch.tensor([value]) for value in (azimuth, elevation, 3.3, 45.0)), 8)
    expected = torch.tensor([*rows, [0, 0, 0, 1]]).float().flatten()
    torch.testing.assert_close(camera_condition(camera)[0], expected, atol=1e-4, rtol=0)
    assert float(camera.c2w[0, :3, 3].norm()) == pytest.approx(3.3)  # the camera itself is as it was


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code from a weights file ran')",)


def test_code_that_a_model_folder_names_never_runs(
    network: UNet2DConditionModel, epsilon_prior_folder: Path, tmp_path: Path
) -> None:
    folder = Path(save_ours(network, tmp_path / "model", epsilon_prior_folder))
    script = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Evil: pass\n"
    for name in ("pipeline.py", "evil.py", "unet/evil.py", "modeling_evil.py"):
        (folder / name).write_text(script)
    index = {"_class_name": ["pipeline", "Evil"], "unet": ["evil", "Evil"], "vae": ["evil", "Evil"],
             "custom_pipeline": "pipeline", "trust_remote_code": True}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in ("unet", "vae", "text_encoder"):
        (folder / part / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
        (folder / part / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
        config = json.loads((folder / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil"}}))
    predicted(MultiViewPrior(str(folder)))
    assert not list(folder.rglob("ran"))


def cut(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def only_a_pickle(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))


def another_network(folder: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.safetensors")


def another_codec(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text('{"_class_name": "os.system"}')


def no_config(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cannot be read as safetensors"),
        (only_a_pickle, "weights are read only as safetensors"),
        (another_network, "not a multi-view model that this program knows"),
        (another_codec, "cannot load the multi-view prior .*os.system"),
        (no_config, "config.json cannot be read"),
    ],
)
def test_what_is_no_multi_view_model_is_refused_in_one_line(
    damage: Callable[[Path], None],
    message: str,
    network: UNet2DConditionModel,
    epsilon_prior_folder: Path,
    tmp_path: Path,
) -> None:
    folder = Path(save_ours(network, tmp_path / "model", epsilon_prior_folder))
    damage(folder)
    with pytest.raises(ValueError, match=message) as refused:
        MultiViewPrior(str(folder))
    assert "\n" not in str(refused.value)


def test_the_original_file_is_refused_as_a_pickle_and_without_weights_the_user_is_asked(tmp_path: Path) -> None:
    (tmp_path / "sd-v2.1-base-4view.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=re.escape("not a .safetensors file")):
        MultiViewPrior(f"{tmp_path / 'sd-v2.1-base-4view.pt'}+{tmp_path}")
    with pytest.raises(ValueError, match="set mvdream.model"):
        MultiViewPrior("")
