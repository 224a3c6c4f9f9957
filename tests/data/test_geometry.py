"""Tests of the geometry of an experiment."""

import math
from dataclasses import replace

import pytest

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.geometry import (
    Geometry,
    compute_electron_wavelength,
    compute_photon_wavelength,
    make_wavelength,
    read_geometry,
)

PLANCK_J_S, LIGHT_SPEED_M_S, ELECTRON_MASS_KG, CHARGE_C = 6.62607015e-34, 299792458.0, 9.1093837015e-31, 1.602176634e-19


@pytest.mark.parametrize("energy_ev", [280.0, 8000.0, 24e3])
def test_the_photon_wavelength_is_planck_times_light_speed_over_energy(energy_ev: float) -> None:
    expected = PLANCK_J_S * LIGHT_SPEED_M_S / (energy_ev * CHARGE_C)
    assert compute_photon_wavelength(energy_ev) == pytest.approx(expected, rel=1e-7)
    assert Geometry(wavelength_m=expected).energy_ev == pytest.approx(energy_ev, rel=1e-7)


@pytest.mark.parametrize("voltage_v", [30e3, 80e3, 300e3])
def test_the_electron_wavelength_is_planck_over_the_relativistic_momentum(voltage_v: float) -> None:
    total = ELECTRON_MASS_KG * LIGHT_SPEED_M_S**2 + CHARGE_C * voltage_v
    momentum = math.sqrt(total**2 - (ELECTRON_MASS_KG * LIGHT_SPEED_M_S**2) ** 2) / LIGHT_SPEED_M_S
    assert compute_electron_wavelength(voltage_v) == pytest.approx(PLANCK_J_S / momentum, rel=1e-5)
    assert Geometry(wavelength_m=2e-12, radiation="electron").energy_ev is None


def test_the_object_pixel_of_the_far_field_follows_each_side_of_the_detector_pixel() -> None:
    geometry = Geometry(wavelength_m=1e-10, distance_m=2.0, detector_pixel_m=(50e-6, 100e-6))
    assert geometry.complete(100).object_pixel_m == pytest.approx((4e-8, 2e-8))
    assert replace(geometry, object_pixel_m=(1e-8, 1e-8)).complete(100).object_pixel_m == (1e-8, 1e-8)
    assert replace(geometry, propagation="near_field").complete(100).object_pixel_m is None
    assert replace(geometry, distance_m=None).complete(100).object_pixel_m is None


def test_a_geometry_survives_json_and_old_pixel_sizes_are_read() -> None:
    geometry = Geometry(wavelength_m=1e-10, detector_pixel_m=(5e-5, 6e-5), radiation="photon")
    assert Geometry.from_dict(geometry.to_dict() | {"later": 1}) == geometry
    assert read_geometry({"geometry": geometry.to_dict()}) == geometry
    assert read_geometry({"converted": {"pixel_size": 5e-9}}) == Geometry(object_pixel_m=(5e-9, 5e-9))
    assert read_geometry({"pixel_size": "large", "converted": "yes"}) is None


@pytest.mark.parametrize(
    "values",
    [
        {"wavelength_m": 0},
        {"distance_m": math.nan},
        {"object_pixel_m": [1e-9]},
        {"detector_pixel_m": 3},
        {"radiation": "x"},
    ],
)
def test_impossible_geometries_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(DataError, match="geometry"):
        Geometry.from_dict(values)


def test_only_one_setting_gives_the_wavelength() -> None:
    assert make_wavelength(None, None, None) == (None, None)
    assert make_wavelength(None, None, 80.0)[1] == "electron"
    with pytest.raises(ConfigError, match="`wavelength` and `energy_ev` are given"):
        make_wavelength(1e-10, 8e3, None)
