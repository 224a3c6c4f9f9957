"""Scale bars: round lengths in readable units, drawn where the object pixel is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.geometry import Geometry
from ptycho_torch.plotting import figures
from ptycho_torch.plotting.canvas import SCALE_BAR_GID, encode_figure
from ptycho_torch.plotting.scale_bar import MAX_BAR_FRACTION, choose_bar_length, format_length


@pytest.mark.parametrize("width_m", [3.1e-12, 9.9e-9, 1e-6, 2.345e-5, 7e-4])
def test_length_is_round_and_at_most_the_allowed_part_of_the_width(width_m: float) -> None:
    length = choose_bar_length(width_m)
    digit = length / 10 ** np.floor(np.log10(length) + 1e-9)
    assert min(abs(digit - number) for number in (1, 2, 5)) < 1e-9
    assert MAX_BAR_FRACTION / 2.51 < length / width_m <= MAX_BAR_FRACTION * (1 + 1e-9)


@pytest.mark.parametrize(
    ("length_m", "text"), [(5e-6, "5 µm"), (1e-6, "1 µm"), (2e-7, "200 nm"), (1e-9, "1 nm"), (5e-11, "50 pm")]
)
def test_length_has_a_readable_unit(length_m: float, text: str) -> None:
    assert format_length(length_m) == text


def get_bars(figure: Any) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts if text.get_gid() == SCALE_BAR_GID]


def test_every_image_of_the_object_and_the_probe_has_a_bar_where_the_pixel_is_known(simulated_case: Any) -> None:
    plain = simulated_case.reconstruction
    known = replace(plain, geometry=Geometry(object_pixel_m=(1e-8, 2e-8)))
    for plot, count in ((figures.plot_object, 2), (figures.plot_probe, 1), (figures.plot_illumination, 2)):
        assert get_bars(plot(plain)) == []
        figure = plot(known)
        assert len(get_bars(figure)) == count
        assert figure.axes[0].get_aspect() == pytest.approx(0.5)
    assert encode_figure(figures.plot_object(known)) != encode_figure(figures.plot_object(plain))
    width = np.ptp(figures.plot_object(known).axes[0].get_xlim())
    assert get_bars(figures.plot_object(known))[0] == format_length(choose_bar_length(float(width) * 2e-8))
