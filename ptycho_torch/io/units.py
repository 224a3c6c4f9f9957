"""Units of numbers in files."""

import math

UNIT_FACTORS: dict[str, float] = {
    "m": 1.0, "meter": 1.0, "meters": 1.0, "metre": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6,
    "micron": 1e-6, "microns": 1e-6, "micrometer": 1e-6, "nm": 1e-9, "nanometer": 1e-9, "pm": 1e-12,
    "a": 1e-10, "å": 1e-10, "angstrom": 1e-10, "angstroms": 1e-10,
    "j": 1.0, "joule": 1.0, "ev": 1.602176634e-19, "kev": 1.602176634e-16,
    "rad": 1.0, "deg": math.pi / 180, "degree": math.pi / 180, "degrees": math.pi / 180,
    "s": 1.0, "ms": 1e-3, "v": 1.0, "kv": 1e3,
}  # fmt: skip
"""Factor of each unit to its SI unit (meter, joule, radian, second, volt), by its name in lower case."""
