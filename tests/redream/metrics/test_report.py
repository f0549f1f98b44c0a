"""Laws of the evaluation report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from redream.clip import Clip
from redream.metrics.a_lpips import ALpips
from redream.metrics.perceptual import PerceptualNet, pool_config
from redream.metrics.report import EvaluationReport, evaluate_views, metric_keys


@pytest.fixture
def report(tiny_clip_folder: Path, tmp_path: Path, generator: torch.Generator) -> EvaluationReport:
    net = PerceptualNet(pool_config(("cat",), ("red",)))
    net.save(tmp_path / "perceptual")
    images = torch.rand(6, 3, 16, 16, generator=generator)
    azimuth_deg = torch.arange(6) * 60.0
    clips = {"mini:clip-eval-a": Clip(str(tiny_clip_folder))}
    return evaluate_views("an owl", images, clips, [ALpips(str(tmp_path / "perceptual"))], judge=(net, azimuth_deg))


def test_averages_are_those_of_the_kept_values(report: EvaluationReport):
    for means, values in ((report.clip_score, report.clip_score_per_view), (report.a_lpips, report.a_lpips_per_pair)):
        assert means.keys() == values.keys() and len(means) == 1
        for name, mean in means.items():
            assert mean == pytest.approx(sum(values[name]) / len(values[name]))
    assert {len(values) for values in report.clip_score_per_view.values()} == {report.num_views}
    assert {len(values) for values in report.a_lpips_per_pair.values()} == {report.num_views - 1}


def test_the_report_survives_json(report: EvaluationReport):
    assert json.loads(json.dumps(dataclasses.asdict(report)))["clip_score"] == report.clip_score


def test_a_miniature_figure_is_never_named_like_a_vgg_figure():
    assert metric_keys("lpips", ["vgg", "alex"]) == ["lpips_vgg", "lpips_alex"]
    assert metric_keys("lpips", ["mini:perceptual-a"]) == ["lpips_a"]
    assert metric_keys("clip", ["mini:clip-eval-a", "/models/clip-b"]) == ["clip_a", "clip_b"]
    assert metric_keys("clip", ["ViT-L-14-quickgelu/openai"]) == ["clip_openai"]
    both = metric_keys("clip", ["ViT-L-14/openai", "ViT-B-32/openai"])  # one word for two models says nothing
    assert both == ["clip_vit_l_14_openai", "clip_vit_b_32_openai"]


def test_the_summary_has_every_average_once(report: EvaluationReport):
    summary = report.summary()
    assert len(summary) == 3 and "wrong_front_share" in summary and "clip_a" in summary


def test_every_figure_is_the_one_computed_by_hand(tiny_clip_folder: Path, tmp_path: Path, generator: torch.Generator):
    net = PerceptualNet(pool_config(("cat",), ("red",))).eval()
    net.save(tmp_path / "perceptual")
    images = torch.rand(5, 3, 16, 16, generator=generator)
    clip, metric = Clip(str(tiny_clip_folder)), ALpips(str(tmp_path / "perceptual"))
    azimuth_deg = torch.tensor([0.0, 100.0, 180.0, -100.0, 60.0])
    report = evaluate_views("an owl", images, {"a": clip}, [metric], close_loop=True, judge=(net, azimuth_deg))
    cosines = clip.embed_images(images) @ clip.embed_text(["an owl"])[0]
    assert report.clip_score_per_view["a"] == pytest.approx(cosines.tolist())
    assert report.clip_score["a"] == pytest.approx(float(cosines.mean()))
    pairs = metric(torch.cat([images, images[:1]]))
    assert report.a_lpips_per_pair[metric.backbone] == pytest.approx(pairs.tolist())
    assert len(pairs) == report.num_views == 5  # the closing pair is one of them
    called = net(images[1:4]).view.argmax(dim=-1)
    assert report.wrong_front_share == pytest.approx(float((called == net.config.views.index("front")).float().mean()))
    assert evaluate_views("an owl", images, {"a": clip}, [metric]).wrong_front_share is None
