"""Objects drawn for pretraining: their ranges, their variety, and what they are made of."""

import numpy as np
import pytest

from ptycho_torch.simulation.image_primitives import draw_power_law_noise, paint_polygons
from ptycho_torch.simulation.objects import RANDOM_OBJECTS, draw_transmission
from ptycho_torch.simulation.photographs import draw_part, load_photographs
from ptycho_torch.simulation.textures import TEXTURES, draw_power_law


def draws(name: str, shape: tuple[int, int], count: int) -> list[np.ndarray]:
    """Objects of one family, the photographs read once."""
    if name == "photographs":
        pool = load_photographs()
        generators = [np.random.default_rng([number, 1]) for number in range(count)]
        return [draw_transmission(pool.draw_images(shape, rng), rng) for rng in generators]
    return [RANDOM_OBJECTS[name](shape, np.random.default_rng([number, 1])) for number in range(count)]


@pytest.mark.parametrize("name", RANDOM_OBJECTS)
def test_random_objects_cover_the_range_of_amplitude_and_phase(name: str) -> None:
    objects = draws(name, (72, 97), 60)
    for obj in objects:
        assert obj.shape == (72, 97)
        assert np.isfinite(obj).all()
        assert np.abs(obj).max() <= 1 + 1e-6
        assert np.square(np.abs(obj)).mean() > 0.02
        assert np.abs(obj - obj.mean()).max() > 0.02  # never empty
    darkest = [np.abs(obj).min() for obj in objects]
    turned = [np.abs(np.angle(obj)).max() for obj in objects]
    assert min(darkest) < 0.1 < 0.7 < max(darkest)
    assert min(turned) < 0.5
    assert max(turned) > 2.5
    assert max(turned) <= np.pi


@pytest.mark.parametrize("name", RANDOM_OBJECTS)
def test_random_objects_are_resolved_by_the_grid(name: str) -> None:
    """Little power lies in the highest frequencies: an object that flickers from pixel to pixel would be aliased."""
    ky, kx = np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96), indexing="ij")
    fine = np.hypot(ky, kx) > 0.45
    shares = []
    for obj in draws(name, (96, 96), 20):
        power = np.square(np.abs(np.fft.fft2(obj - obj.mean())))
        shares.append(power[fine].sum() / power.sum())
    assert np.median(shares) < 0.02
    assert max(shares) < 0.12  # white noise has 0.36 there


@pytest.mark.parametrize("name", TEXTURES)
def test_images_lie_between_0_and_1_and_differ_between_draws(name: str) -> None:
    first, again, other = (TEXTURES[name]((64, 65), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (2, 64, 65)
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_lines_have_equal_amplitude_and_phase_images() -> None:
    amplitude, phase = TEXTURES["lines"]((80, 90), np.random.default_rng(0))
    assert np.array_equal(amplitude, phase)


def test_painted_polygon_has_its_area_and_hides_earlier_polygons() -> None:
    square = np.array([[10, 10], [10, 30], [30, 30], [30, 10]], dtype=float)
    small = np.array([[15, 12], [15, 22], [20, 22], [20, 12]], dtype=float)
    image = paint_polygons(np.stack([square, small]), np.array([4, 4]), np.array([[0.0, 1.0, 0.0]]), (40, 50))[0]
    assert image.sum() == pytest.approx(20 * 20 - 5 * 10, rel=0.06)
    assert image[12, 25] == 1
    assert image[17, 17] == 0  # the small polygon lies near the first rows and columns
    assert image[17, 25] == 1
    hidden = paint_polygons(np.stack([small, square]), np.array([4, 4]), np.array([[0.0, 0.0, 1.0]]), (40, 50))[0]
    assert hidden[17, 17] == 1


@pytest.mark.parametrize("power", [0.5, 1.5, 2.5])
def test_power_law_noise_has_its_exponent(power: float) -> None:
    field = draw_power_law_noise((256, 256), np.random.default_rng(0), power)
    spectrum = np.abs(np.fft.fft2(field))
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256), indexing="ij"))
    low, high = (np.sqrt(np.mean(np.square(spectrum[(k > edge) & (k < 1.2 * edge)]))) for edge in (0.04, 0.32))
    assert np.log2(low / high) / 3 == pytest.approx(power, abs=0.1)
    assert field.std() == pytest.approx(1, abs=1e-4)


def test_radii_follow_their_power_law() -> None:
    radii = draw_power_law(np.random.default_rng(0), 200_000, 2, 32, 3.0)
    assert 2 <= radii.min() < radii.max() <= 32
    share = (2**-2 - 4**-2) / (2**-2 - 32**-2)  # of a density r^-3 below r = 4
    assert np.mean(radii < 4) == pytest.approx(share, abs=0.005)


def test_photographs_are_available_and_have_contrast() -> None:
    pool = load_photographs()
    for pyramid in pool.pyramids:
        assert min(pyramid[0].shape) >= 300
        part = draw_part(pyramid, (70, 81), np.random.default_rng(0))
        assert part.shape == (70, 81)
        assert 0 <= part.min() <= part.max() <= 1
        assert pyramid[1].mean() == pytest.approx(pyramid[0].mean(), abs=0.01)
