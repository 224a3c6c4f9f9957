"""Selection of the arithmetic: the requested precision, or the faster precision of the machine."""

import pytest
import torch

from ptycho_torch.distributed import devices


@pytest.mark.parametrize(
    ("cpu_info", "expected"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16 amd_lbr_v2", "bf16"),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16", "bf16"),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", "fp32"),
        ("vendor_id : AuthenticAMD\nflags : avx2", "fp32"),
        ("", "fp32"),
    ],
)
def test_auto_precision_is_bf16_on_a_cpu_that_is_faster_in_bf16(
    cpu_info: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_read_cpu_info", lambda: cpu_info)
    cpu = torch.device("cpu")
    assert devices.select_precision("auto", cpu) == expected
    assert [devices.select_precision(name, cpu) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert devices.select_precision("auto", torch.device("mps")) == "fp32"
