"""What every network and head keeps to: independence of patterns, no ceiling, gradients everywhere."""

from collections.abc import Callable, Iterator
from dataclasses import replace

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
from ptycho_torch.physics.probe import compute_power

EVERY = {f"{name}-{head}": NetworkConfig(name, head, width=4) for name in sorted(NETWORKS) for head in sorted(HEADS)}
EVERY["lifted_unet-probe"] = NetworkConfig("lifted_unet", width=4, probe_channel=True)


@pytest.fixture(params=EVERY.values(), ids=EVERY.keys())
def config(request: pytest.FixtureRequest) -> NetworkConfig:
    found: NetworkConfig = request.param
    return found


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def model_of(scan: Scan, config: NetworkConfig, update_probe: bool = False, stirred: bool = True) -> PtychoModel:
    """A model; its weights ``stirred``, so that it does not answer with vacuum as an untrained one does."""
    model = PtychoModel(config, scale_probe_to_photons(scan, 1.0), update_probe)
    if stirred:
        with torch.no_grad():
            for weight in model.network.parameters():
                weight += 0.05 * torch.randn_like(weight)
    return model


def stages_of(model: PtychoModel, batch: Batch) -> list[Wavefields]:
    """What each part of a network learns from: of most there is one."""
    found = model.forward_details(batch)
    return [*found.intermediate, found.fields]


@pytest.mark.parametrize("size", [24, 32, 40, 64])
def test_any_size_divisible_by_eight(config: NetworkConfig, size: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(3, size)
    patches = model_of(scan, config).predict(make_batch(scan, 1.0))
    assert patches.shape == (3, size, size)
    assert patches.dtype == torch.complex64
    assert torch.isfinite(torch.view_as_real(patches)).all()


@pytest.mark.parametrize("size", [20, 25, 63])
def test_other_sizes_are_refused(config: NetworkConfig, size: int, scan_factory: Callable[..., Scan]) -> None:
    with pytest.raises(ConfigError, match=rf"patterns of {size} × {size} pixels; .* divisible by 8"):
        model_of(scan_factory(3, size), config)


def test_a_pattern_is_seen_alike_in_any_company(config: NetworkConfig, scan: Scan) -> None:
    model, batch = model_of(scan, config).eval(), make_batch(scan, 1.0)
    together = model.predict(batch)
    order = torch.randperm(len(scan))
    assert (model.predict(batch.take(order)) - together[order]).abs().max() < 1e-5
    for index in (0, 17, 35):
        alone = model.predict(batch.take(torch.tensor([index])))
        assert (alone[0] - together[index]).abs().max() < 1e-5


def test_an_untrained_network_answers_vacuum(config: NetworkConfig, scan: Scan) -> None:
    """Or what the steps of physics that it takes make of vacuum."""
    batch = make_batch(scan, 1.0)
    patches = model_of(scan, config, stirred=False).predict(batch)
    probe = shift_probe(scale_probe_to_photons(scan, 1.0), batch.fractions)
    made = config.architecture
    expected = torch.ones_like(patches)
    for _ in range(made.dc_steps * (1 + made.cascades)):
        expected = expected + data_consistency_step(expected, batch.amplitudes, probe)
    assert torch.equal(patches, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(name for name in NETWORKS if NETWORKS[name].dc_steps))
def test_steps_of_physics_bring_patches_nearer_to_their_patterns(name: str, scan: Scan) -> None:
    batch = make_batch(scan, 1.0)
    model = model_of(scan, NetworkConfig(name, width=4))
    probe = shift_probe(model.probe, batch.fractions)

    def missed() -> float:
        amplitudes = from_patches(model.predict(batch), probe).intensity.sqrt()
        return float((amplitudes - batch.amplitudes).square().sum() / batch.counts.sum())

    assert isinstance(model.network, PatternNetwork)
    stepped = missed()
    model.network.dc_steps = 0
    assert stepped < missed() / 2


@pytest.mark.parametrize("head", sorted(HEADS))
def test_heads_reach_strong_objects(head: str) -> None:
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
def test_gradients_reach_everything_that_learns(config: NetworkConfig, update_probe: bool, scan: Scan) -> None:
    model = model_of(scan, config, update_probe)
    batch = make_batch(scan, 1.0)
    for fields in stages_of(model, batch):
        (fields.intensity - batch.counts).square().mean().backward(retain_graph=True)
    for name, weight in model.named_parameters():
        if name == "scans.0.probe" and not update_probe:
            assert weight.grad is None
            continue
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name


def test_one_batch_can_be_learnt_by_heart(config: NetworkConfig, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(photons=0)  # without counting noise, which no object explains
    model = model_of(scan, replace(config, width=8), stirred=False)
    batch = make_batch(scan, 1.0).take(torch.arange(4))
    optimizer = torch.optim.Adam(model.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        stages = [(fields.intensity.sqrt() - batch.amplitudes).square().mean() for fields in stages_of(model, batch)]
        optimizer.zero_grad()
        torch.stack(stages).sum().backward()
        optimizer.step()
        losses.append(stages[-1].item())
    flat = (compute_power(far_field(model.probe)).sqrt() - batch.amplitudes).square().mean()
    assert losses[-1] < float(flat.detach()) / 10


@pytest.mark.parametrize("modes", [1, 3])
def test_the_model_is_the_merged_patches_propagated(modes: int, scan_factory: Callable[..., Scan]) -> None:
    """Intensities are those of the patches that it returns, and overlapping patches agree."""
    scan = scan_factory(9, 24, modes=modes)
    model, batch = model_of(scan, NetworkConfig(width=4)), make_batch(scan, 1.0)
    fields = model(batch)
    assert fields.exit.shape == (9, modes, 24, 24)
    far = torch.fft.fft2(fields.exit, norm="ortho")
    assert torch.allclose(far.abs().square().sum(1), fields.intensity, rtol=1e-4, atol=1e-2)
    seen: dict[tuple[int, int], complex] = {}
    for patch, (top, left) in zip(fields.patches.detach(), batch.corners.tolist(), strict=True):
        for row in range(0, 24, 5):
            for column in range(0, 24, 5):
                value = complex(patch[row, column])
                assert abs(seen.setdefault((top + row, left + column), value) - value) < 1e-6


def test_true_patches_pass_the_constraint_unchanged(scan: Scan) -> None:
    """A network that knows the truth gives the measurement's expectation, whatever the batch."""
    from ptycho_torch.physics.patches import extract_patches

    model, batch = model_of(scan, NetworkConfig(width=4)), make_batch(scan, 1.0)
    truth = torch.from_numpy(scan.truth)
    true_patches = extract_patches(truth, batch.corners, scan.size)

    class Oracle(torch.nn.Module):
        def forward(self, amplitudes: torch.Tensor, probe: torch.Tensor, mask: None = None) -> torch.Tensor:
            return true_patches

    model.network = Oracle()
    assert (model(batch).patches - true_patches).abs().max() < 1e-5


def test_unknown_names_are_refused(scan: Scan) -> None:
    with pytest.raises(ConfigError, match=f"`network` is vgg; expected one of {', '.join(sorted(NETWORKS))}"):
        model_of(scan, NetworkConfig("vgg"))
    with pytest.raises(ConfigError, match="`head` is tanh; expected one of polar, residual"):
        model_of(scan, NetworkConfig(head="tanh"))


@pytest.mark.parametrize("modes", [1, 3])
def test_the_probe_is_seen_as_a_share_of_its_maximum(modes: int, scan_factory: Callable[..., Scan]) -> None:
    """Whatever its brightness, phase and mixture of modes; and a network that does not ask for it does not see it."""
    scan = scan_factory(4, 24, modes=modes)
    probe = scale_probe_to_photons(scan, 1.0)[None]
    mixture = torch.linalg.qr(torch.randn(modes, modes, dtype=torch.complex64))[0]
    mixed = 7 * torch.einsum("ab,nbij->naij", mixture, probe)
    amplitudes = make_batch(scan, 1.0).amplitudes[:1]
    seeing, blind = (model_of(scan, NetworkConfig(width=4, probe_channel=sees)).network for sees in (True, False))
    seen = seeing.compute_channels(amplitudes, probe)
    assert seen.shape == (1, 4, 24, 24)
    assert torch.equal(seen[:, :3], blind.compute_channels(amplitudes, probe))
    assert seen[:, 3].amax() == pytest.approx(1)
    lit = probe.abs().square().sum(1).sqrt()
    assert torch.allclose(seen[:, 3] * lit.amax(), lit, atol=1e-5 * float(lit.amax()))
    assert torch.allclose(seeing.compute_channels(amplitudes, mixed)[:, 3], seen[:, 3], atol=1e-5)
    assert torch.isfinite(seeing.compute_channels(amplitudes, torch.zeros_like(probe))).all()


def test_a_network_without_the_lift_gets_no_probe(scan: Scan) -> None:
    with pytest.raises(ConfigError, match="`network` unet with a probe channel"):
        model_of(scan, NetworkConfig("unet", probe_channel=True))


def test_the_unit_of_stored_amplitudes_does_not_matter(scan: Scan) -> None:
    """Amplitudes c times as large, with 1/c² photons a squared unit, are the same measurement."""
    from ptycho_torch.physics.noise import NOISE_MODELS, make_noise_model, masked_mean

    def losses(factor: float) -> list[float]:
        other = replace(scan, amplitudes=scan.amplitudes * factor)
        torch.manual_seed(1)
        model = PtychoModel(NetworkConfig(width=4), scale_probe_to_photons(other, factor**-2))
        batch = make_batch(other, factor**-2)
        intensity = model(batch).intensity
        return [
            masked_mean(make_noise_model(name).deviance(intensity, batch.counts), None).item() for name in NOISE_MODELS
        ]

    reference = losses(1.0)
    for factor in (1e-3, 37.0, 1e4):
        assert losses(factor) == pytest.approx(reference, rel=1e-4)


def test_masked_pixels_are_not_looked_at(config: NetworkConfig, scan: Scan) -> None:
    """Whatever a masked pixel holds, prediction, probe power and loss are the same."""
    import numpy as np

    from ptycho_torch.physics.noise import make_noise_model, masked_mean

    mask = np.ones((24, 24), dtype=bool)
    mask[3:5, 10:20] = False

    def found(value: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        other = replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(value)))
        torch.manual_seed(1)
        model, batch = model_of(other, config), make_batch(other, 1.0)
        loss = masked_mean(make_noise_model("amplitude").deviance(model(batch).intensity, batch.counts), batch.mask)
        return model.probe, model.predict(batch), loss.item()

    first, second = found(0), found(1e5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]


def test_mask_of_the_detector_is_shifted_with_the_patterns(scan: Scan) -> None:
    """The centre of the detector, masked in the file, is the zero frequency at [0, 0] inside."""
    import numpy as np

    mask = np.ones((24, 24), dtype=bool)
    mask[12, 12] = False
    batch: Batch = make_batch(replace(scan, mask=mask), 1.0)
    assert batch.mask is not None
    assert (~batch.mask).nonzero().tolist() == [[0, 0, 0]]
    each = make_batch(replace(scan, mask=np.broadcast_to(mask, scan.amplitudes.shape)), 1.0).take(torch.arange(5))
    assert each.mask is not None
    assert each.mask.shape == (5, 24, 24)


@pytest.mark.parametrize("modes", [1, 2])
def test_the_probe_has_the_power_of_the_mean_pattern(modes: int, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(9, 24, modes=modes)
    probe = scale_probe_to_photons(scan, 2.5)
    photons = 2.5 * (scan.amplitudes.astype(float) ** 2).sum((1, 2)).mean()
    assert probe.abs().square().sum().item() == pytest.approx(photons, rel=1e-5)
    shape = torch.from_numpy(scan.probe)
    assert torch.allclose(probe / probe.abs().max(), shape / shape.abs().max(), atol=1e-6)


def test_a_step_of_physics_asks_nothing_of_masked_pixels(scan: Scan) -> None:
    """Whatever is written there, and however the steps end."""
    model, batch = model_of(scan, NetworkConfig("refined_unet", width=4)), make_batch(scan, 1.0)
    mask = torch.rand(1, *batch.amplitudes.shape[1:], generator=torch.Generator().manual_seed(0)) > 0.2
    dead = torch.where(mask, batch.amplitudes, 0.0)
    patches = torch.ones_like(batch.amplitudes) + 0j
    probes = shift_probe(model.probe, batch.fractions)
    step = data_consistency_step(patches, dead, probes, mask)
    torch.testing.assert_close(data_consistency_step(patches, torch.where(mask, dead, 77.0), probes, mask), step)
    assert (data_consistency_step(patches, dead, probes) - step).abs().max() > 1e-3
    expected = from_patches(patches, probes).intensity.sqrt()
    as_measured = torch.where(mask, expected, dead)
    holes = data_consistency_step(patches, as_measured, probes).abs().max()
    assert data_consistency_step(patches, as_measured, probes, mask).abs().max() < 0.02 * holes
