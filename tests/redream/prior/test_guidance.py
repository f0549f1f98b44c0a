import torch

from redream.prior.guidance import classifier_free_guidance


def test_guidance_scale_one_returns_conditional_prediction(generator) -> None:
    uncond, cond = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    assert torch.allclose(classifier_free_guidance(uncond, cond, 1.0), cond)
    assert torch.equal(classifier_free_guidance(uncond, cond, 0.0), uncond)


def test_guidance_extrapolates_beyond_the_conditional_prediction() -> None:
    assert classifier_free_guidance(torch.tensor([1.0]), torch.tensor([2.0]), 7.5).item() == 8.5
