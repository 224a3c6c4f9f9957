"""Properties of every network and head: independent patterns, unbounded modulus, gradients to all parameters."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.heads import HEADS
from ptycho_torch.models.input_lift import data_consistency_step
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NETWORKS, NetworkConfig, PatternNetwork
from ptycho_torch.physics.batch import Batch, make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import Wavefields, from_patches, shift_probe
from ptycho_torch.physics.fourier import far_field
from ptycho_torch.physics.noise import NOISE_MODELS, make_noise_model, masked_mean
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.physics.probe import compute_power

CONFIGS = {f"{name}-{head}": NetworkConfig(name, head, width=4) for name in sorted(NETWORKS) for head in sorted(HEADS)}
CONFIGS["lifted_unet-probe"] = NetworkConfig("lifted_unet", width=4, probe_channel=True)


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request: pytest.FixtureRequest) -> NetworkConfig:
    config: NetworkConfig = request.param
    return config


@pytest.fixture(autouse=True)
def seed_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_model(scan: Scan, config: NetworkConfig, update_probe: bool = False, perturbed: bool = True) -> PtychoModel:
    """Make a model; ``perturbed`` weights, because an untrained model predicts vacuum."""
    model = PtychoModel(config, scale_probe_to_photons(scan, 1.0), update_probe)
    if perturbed:
        with torch.no_grad():
            for weight in model.network.parameters():
                weight += 0.05 * torch.randn_like(weight)
    return model


def compute_stages(model: PtychoModel, batch: Batch) -> list[Wavefields]:
    """Return the wave fields after each part of a network; most networks have one part."""
    details = model.forward_details(batch)
    return [*details.intermediate, details.fields]


@pytest.mark.parametrize("size", [9, 17, 24, 36, 64])
def test_patterns_of_any_size_are_accepted(config: NetworkConfig, size: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(3, size)
    patches = make_model(scan, config).predict(make_batch(scan, 1.0))
    assert patches.shape == (3, size, size)
    assert patches.dtype == torch.complex64
    assert torch.isfinite(torch.view_as_real(patches)).all()


def test_prediction_of_a_pattern_does_not_depend_on_the_batch(config: NetworkConfig, scan: Scan) -> None:
    model, batch = make_model(scan, config).eval(), make_batch(scan, 1.0)
    together = model.predict(batch)
    order = torch.randperm(len(scan))
    assert (model.predict(batch.take(order)) - together[order]).abs().max() < 1e-5
    for index in (0, 17, 35):
        alone = model.predict(batch.take(torch.tensor([index])))
        assert (alone[0] - together[index]).abs().max() < 1e-5


def test_untrained_network_predicts_vacuum(config: NetworkConfig, scan: Scan) -> None:
    """Vacuum, changed by the data-consistency steps of the network."""
    batch = make_batch(scan, 1.0)
    patches = make_model(scan, config, perturbed=False).predict(batch)
    probe = shift_probe(scale_probe_to_photons(scan, 1.0), batch.fractions)
    architecture = config.architecture
    expected = torch.ones_like(patches)
    for _ in range(architecture.dc_steps * (1 + architecture.cascades)):
        expected = expected + data_consistency_step(expected, batch.amplitudes, probe)
    assert torch.equal(patches, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(name for name in NETWORKS if NETWORKS[name].dc_steps))
def test_data_consistency_steps_reduce_the_fourier_error(name: str, scan: Scan) -> None:
    batch = make_batch(scan, 1.0)
    model = make_model(scan, NetworkConfig(name, width=4))
    probe = shift_probe(model.probe, batch.fractions)

    def compute_residual() -> float:
        amplitudes = from_patches(model.predict(batch), probe).intensity.sqrt()
        return float((amplitudes - batch.amplitudes).square().sum() / batch.counts.sum())

    assert isinstance(model.network, PatternNetwork)
    with_steps = compute_residual()
    model.network.dc_steps = 0
    assert with_steps < compute_residual() / 2


@pytest.mark.parametrize("head", sorted(HEADS))
def test_heads_represent_strong_objects(head: str) -> None:
    target = torch.polar(torch.full((1, 8, 8), 3.0), torch.linspace(-3.1, 3.1, 64).reshape(1, 8, 8))
    channels = torch.zeros(1, 2, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([channels], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (HEADS[head](channels) - target).abs().square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_phase_of_the_polar_head_does_not_wrap() -> None:
    channels = torch.zeros(1, 2, 1, 1)
    channels[:, 1] = 4.0
    expected = torch.polar(torch.tensor(1.0), torch.tensor(4.0))
    assert torch.allclose(HEADS["polar"](channels), expected)


@pytest.mark.parametrize("update_probe", [False, True])
def test_gradients_reach_all_learned_parameters(config: NetworkConfig, update_probe: bool, scan: Scan) -> None:
    model = make_model(scan, config, update_probe)
    batch = make_batch(scan, 1.0)
    for fields in compute_stages(model, batch):
        (fields.intensity - batch.counts).square().mean().backward(retain_graph=True)
    for name, weight in model.named_parameters():
        if name == "scans.0.probe" and not update_probe:
            assert weight.grad is None
            continue
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name


def test_every_network_can_fit_one_batch(config: NetworkConfig, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(photons=0)  # no counting noise, which no object explains
    model = make_model(scan, replace(config, width=8), perturbed=False)
    batch = make_batch(scan, 1.0).take(torch.arange(4))
    optimizer = torch.optim.Adam(model.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        stages = [
            (fields.intensity.sqrt() - batch.amplitudes).square().mean() for fields in compute_stages(model, batch)
        ]
        optimizer.zero_grad()
        torch.stack(stages).sum().backward()
        optimizer.step()
        losses.append(stages[-1].item())
    flat = (compute_power(far_field(model.probe)).sqrt() - batch.amplitudes).square().mean()
    assert losses[-1] < float(flat.detach()) / 10


@pytest.mark.parametrize("modes", [1, 3])
def test_intensity_is_the_propagation_of_the_merged_patches(modes: int, scan_factory: Callable[..., Scan]) -> None:
    """The intensities belong to the returned patches, and overlapping patches are equal."""
    scan = scan_factory(9, 24, modes=modes)
    model, batch = make_model(scan, NetworkConfig(width=4)), make_batch(scan, 1.0)
    fields = model(batch)
    assert fields.exit.shape == (9, modes, 24, 24)
    far = torch.fft.fft2(fields.exit, norm="ortho")
    assert torch.allclose(far.abs().square().sum(1), fields.intensity, rtol=1e-4, atol=1e-2)
    values: dict[tuple[int, int], complex] = {}
    for patch, (top, left) in zip(fields.patches.detach(), batch.corners.tolist(), strict=True):
        for row in range(0, 24, 5):
            for column in range(0, 24, 5):
                value = complex(patch[row, column])
                assert abs(values.setdefault((top + row, left + column), value) - value) < 1e-6


def test_overlap_constraint_leaves_true_patches_unchanged(scan: Scan) -> None:
    model, batch = make_model(scan, NetworkConfig(width=4)), make_batch(scan, 1.0)
    truth = torch.from_numpy(scan.truth)
    true_patches = extract_patches(truth, batch.corners, scan.size)

    class TruePatches(torch.nn.Module):
        def forward(self, amplitudes: torch.Tensor, probe: torch.Tensor, mask: None = None) -> torch.Tensor:
            return true_patches

    model.network = TruePatches()
    assert (model(batch).patches - true_patches).abs().max() < 1e-5


def test_unknown_names_are_refused(scan: Scan) -> None:
    with pytest.raises(ConfigError, match=f"`network` is vgg; expected one of {', '.join(sorted(NETWORKS))}"):
        make_model(scan, NetworkConfig("vgg"))
    with pytest.raises(ConfigError, match="`head` is tanh; expected one of polar, residual"):
        make_model(scan, NetworkConfig(head="tanh"))


@pytest.mark.parametrize("modes", [1, 3])
def test_probe_channel_is_the_amplitude_relative_to_its_maximum(modes: int, scan_factory: Callable[..., Scan]) -> None:
    """For any power, phase and mixture of modes; networks without the probe channel have the other channels only."""
    scan = scan_factory(4, 24, modes=modes)
    probe = scale_probe_to_photons(scan, 1.0)[None]
    mixture = torch.linalg.qr(torch.randn(modes, modes, dtype=torch.complex64))[0]
    mixed = 7 * torch.einsum("ab,nbij->naij", mixture, probe)
    amplitudes = make_batch(scan, 1.0).amplitudes[:1]
    with_channel, without = (
        make_model(scan, NetworkConfig(width=4, probe_channel=enabled)).network for enabled in (True, False)
    )
    channels = with_channel.compute_channels(amplitudes, probe)
    assert channels.shape == (1, 4, 24, 24)
    assert torch.equal(channels[:, :3], without.compute_channels(amplitudes, probe))
    assert channels[:, 3].amax() == pytest.approx(1)
    amplitude = probe.abs().square().sum(1).sqrt()
    assert torch.allclose(channels[:, 3] * amplitude.amax(), amplitude, atol=1e-5 * float(amplitude.amax()))
    assert torch.allclose(with_channel.compute_channels(amplitudes, mixed)[:, 3], channels[:, 3], atol=1e-5)
    assert torch.isfinite(with_channel.compute_channels(amplitudes, torch.zeros_like(probe))).all()


def test_probe_channel_without_the_physics_input_is_refused(scan: Scan) -> None:
    with pytest.raises(ConfigError, match="`network` unet with a probe channel"):
        make_model(scan, NetworkConfig("unet", probe_channel=True))


def test_losses_do_not_depend_on_the_unit_of_stored_amplitudes(scan: Scan) -> None:
    """Amplitudes c times as large, with 1/c² photons per squared unit, are the same measurement."""

    def compute_losses(factor: float) -> list[float]:
        other = replace(scan, amplitudes=scan.amplitudes * factor)
        torch.manual_seed(1)
        model = PtychoModel(NetworkConfig(width=4), scale_probe_to_photons(other, factor**-2))
        batch = make_batch(other, factor**-2)
        intensity = model(batch).intensity
        return [
            masked_mean(make_noise_model(name).deviance(intensity, batch.counts), None).item() for name in NOISE_MODELS
        ]

    reference = compute_losses(1.0)
    for factor in (1e-3, 37.0, 1e4):
        assert compute_losses(factor) == pytest.approx(reference, rel=1e-4)


def test_values_of_masked_pixels_have_no_effect(config: NetworkConfig, scan: Scan) -> None:
    """On prediction, probe power and loss."""
    mask = np.ones((24, 24), dtype=bool)
    mask[3:5, 10:20] = False

    def compute_results(value: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        other = replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(value)))
        torch.manual_seed(1)
        model, batch = make_model(other, config), make_batch(other, 1.0)
        loss = masked_mean(make_noise_model("amplitude").deviance(model(batch).intensity, batch.counts), batch.mask)
        return model.probe, model.predict(batch), loss.item()

    first, second = compute_results(0), compute_results(1e5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]


def test_mask_is_shifted_like_the_patterns(scan: Scan) -> None:
    """The center of the detector in the file is the zero frequency at [0, 0] of a batch."""
    mask = np.ones((24, 24), dtype=bool)
    mask[12, 12] = False
    batch: Batch = make_batch(replace(scan, mask=mask), 1.0)
    assert batch.mask is not None
    assert (~batch.mask).nonzero().tolist() == [[0, 0, 0]]
    per_pattern = make_batch(replace(scan, mask=np.broadcast_to(mask, scan.amplitudes.shape)), 1.0).take(
        torch.arange(5)
    )
    assert per_pattern.mask is not None
    assert per_pattern.mask.shape == (5, 24, 24)


@pytest.mark.parametrize("modes", [1, 2])
def test_the_probe_has_the_power_of_the_mean_pattern(modes: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(9, 24, modes=modes)
    probe = scale_probe_to_photons(scan, 2.5)
    photons = 2.5 * (scan.amplitudes.astype(float) ** 2).sum((1, 2)).mean()
    assert probe.abs().square().sum().item() == pytest.approx(photons, rel=1e-5)
    shape = torch.from_numpy(scan.probe)
    assert torch.allclose(probe / probe.abs().max(), shape / shape.abs().max(), atol=1e-6)


def test_data_consistency_step_ignores_masked_pixels(scan: Scan) -> None:
    """Their values have no effect, and a step from the true patches is small."""
    model, batch = make_model(scan, NetworkConfig("refined_unet", width=4)), make_batch(scan, 1.0)
    mask = torch.rand(1, *batch.amplitudes.shape[1:], generator=torch.Generator().manual_seed(0)) > 0.2
    masked = torch.where(mask, batch.amplitudes, 0.0)
    patches = torch.ones_like(batch.amplitudes) + 0j
    probes = shift_probe(model.probe, batch.fractions)
    step = data_consistency_step(patches, masked, probes, mask)
    torch.testing.assert_close(data_consistency_step(patches, torch.where(mask, masked, 77.0), probes, mask), step)
    assert (data_consistency_step(patches, masked, probes) - step).abs().max() > 1e-3
    expected = from_patches(patches, probes).intensity.sqrt()
    as_measured = torch.where(mask, expected, masked)
    without_mask = data_consistency_step(patches, as_measured, probes).abs().max()
    assert data_consistency_step(patches, as_measured, probes, mask).abs().max() < 0.02 * without_mask
