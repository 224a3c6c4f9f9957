"""Images of TIFF files: the pages of one file, or a folder of files in the order of the last number in their names."""

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.layout import ArrayHeader
from ptycho_torch.io.size_limits import check_array_size
from ptycho_torch.io.store import ArrayStore
from ptycho_torch.io.zarr_store import READ_ERRORS

TIFF_KEY = "array"
"""Key of the images."""

TIFF_SUFFIXES = (".tif", ".tiff")


def list_series(folder: Path) -> list[Path]:
    """Return the TIFF files of a folder, ordered by the last number in the name, as a number."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in TIFF_SUFFIXES]

    def order(path: Path) -> tuple[int, str]:
        numbers = re.findall(r"\d+", path.stem)
        return (int(numbers[-1]) if numbers else -1, path.name)

    return sorted(files, key=order)


class TiffStore(ArrayStore):
    """The images of one file, or of a series of files, as one array (n, rows, columns)."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.shape, self.dtype = _read_header(files[0])

    def list_headers(self) -> dict[str, ArrayHeader]:
        shape = self.shape if len(self.files) == 1 else (len(self.files), *self.shape)
        return {TIFF_KEY: ArrayHeader(shape, self.dtype, False)}

    def read(self, key: str) -> NDArray[Any]:
        header = self.list_headers()[key]
        check_array_size(str(self.files[0].parent), header.shape, header.dtype)
        if len(self.files) == 1:
            return _read_images(self.files[0])
        images = np.empty(header.shape, header.dtype)
        for index, path in enumerate(self.files):
            image = _read_images(path)
            if (image.shape, image.dtype) != (self.shape, self.dtype):
                raise DataError(
                    f"{path}: the image has shape {image.shape} and type {image.dtype}; expected {self.shape} and "
                    f"{self.dtype}, as in the first"
                )
            images[index] = image
        return images


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of all images of a file."""
    with _open_tiff(path) as file:
        try:
            page = file.pages[0]
            count = len(file.pages)
            shape = tuple(page.shape)
            return (shape if count == 1 else (count, *shape)), np.dtype(page.dtype)
        except (*READ_ERRORS, struct.error) as error:
            raise DataError(f"{path}: the TIFF file is damaged ({error}); copy it again") from error


def _read_images(path: Path) -> NDArray[Any]:
    shape, dtype = _read_header(path)
    check_array_size(str(path), shape, dtype)
    with _open_tiff(path) as file:
        try:
            pages = [np.asarray(page.asarray()) for page in file.pages]
        except (*READ_ERRORS, struct.error, zlib.error) as error:
            raise DataError(f"{path}: the images cannot be read ({error}); copy the file again") from error
    if any((page.shape, page.dtype) != (pages[0].shape, pages[0].dtype) for page in pages):
        raise DataError(f"{path}: the pages differ in shape or type; expected images of one detector")
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _open_tiff(path: Path) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise DataError(f'{path}: a TIFF file requires tifffile; pip install "ptycho-torch[formats]"') from error
    try:
        return tifffile.TiffFile(path)
    except (*READ_ERRORS, struct.error) as error:
        raise DataError(f"{path}: the TIFF file is damaged ({error}); copy it again") from error
