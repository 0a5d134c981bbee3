"""bfloat16 and torch.compile change the arithmetic, not what is learned."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code
from torch.nn import functional

from tests.training.jobs import OBJECTIVES, job_with, take_steps
from vaegen_ray.models.blocks import doubled
from vaegen_ray.training import precision
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.precision import COMPILER, compile_networks
from vaegen_ray.training.state import TrainState

CPU = torch.device("cpu")


def last_step(name: str, start_images: int = 0, **training: object) -> dict[str, float]:
    objective = OBJECTIVES[name]
    if start_images:
        objective = {**objective, "adversarial": {**objective["adversarial"], "start_images": start_images}}
    job = job_with(objective, training=training)
    state = TrainState(job, CPU)
    compile_networks(state.objective, job, CPU)
    return take_steps(job, LocalSession(0, 1, CPU), state, until=40)[-1]


@pytest.mark.parametrize("name", ["vae", "gan", "vae_gan, adaptive"])
def test_bfloat16_stays_near_float32_and_keeps_parameters_in_float32(name: str) -> None:
    exact, rounded = last_step(name), last_step(name, precision="bfloat16")
    assert rounded["generator_loss"] == pytest.approx(exact["generator_loss"], rel=0.05)
    assert rounded["generator_loss"] != exact["generator_loss"]
    job = job_with(OBJECTIVES[name], training={"precision": "bfloat16"})
    assert all(parameter.dtype == torch.float32 for parameter in TrainState(job, CPU).objective.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("start_images", [0, 16])
def test_compiled_networks_give_the_losses_of_eager_ones(start_images: int) -> None:
    # Where the discriminator learns alone first, the generator's phase came to code that was compiled for another.
    torch._dynamo.reset()
    eager, compiled = (last_step("vae_gan, adaptive", start_images, compile=compile_) for compile_ in (False, True))
    for name in ("generator_loss", "discriminator_loss", "adversarial_weight", "train_kl_nats"):
        assert compiled[name] == pytest.approx(eager[name], rel=1e-3, abs=1e-4)


def test_discriminator_with_a_gradient_penalty_stays_eager(caplog: pytest.LogCaptureFixture) -> None:
    job = job_with(OBJECTIVES["gan"], training={"compile": True})
    state = TrainState(job, CPU)
    with caplog.at_level(logging.WARNING):
        compile_networks(state.objective, job, CPU)
    assert "discriminator stays eager" in caplog.text
    discriminator = state.objective.discriminator
    assert discriminator is not None
    assert discriminator._compiled_call_impl is None


def test_machine_that_cannot_compile_trains_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "_compilation_problem", lambda _device: "no compiler")
    job = job_with(OBJECTIVES["vae"], training={"compile": True})
    state = TrainState(job, CPU)
    with caplog.at_level(logging.WARNING):
        compile_networks(state.objective, job, CPU)
    assert "torch.compile fails on this machine: no compiler" in caplog.text
    assert state.objective.generator.decoder.body._compiled_call_impl is None


def test_compiled_upsampling_has_the_gradient_of_the_eager_one_without_atomic_additions() -> None:
    """Those vary in their order on a GPU, where compiled runs were not repeatable for it."""
    features = torch.randn(2, 8, 6, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    weight = torch.randn(3, 8, 3, 3, generator=torch.Generator().manual_seed(1))

    def loss(features_BCHW: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(doubled(features_BCHW), weight).square().sum()

    def gradient(loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.autograd.grad(loss(leaf := features.clone().requires_grad_()), leaf)[0]

    with inductor_config.patch(force_disable_caches=True):
        compiled, code = run_and_get_code(gradient, torch.compile(loss, dynamic=False, options=COMPILER))
    torch.testing.assert_close(compiled, gradient(loss), rtol=1e-5, atol=1e-5)
    assert len(code) == 2
    assert not any("atomic_add" in text or "index_put" in text for text in code)
