"""PyTorch's `.pth` files, mapped and read without running any code in them."""

import pickle
from typing import Any

import numpy as np

from dim_jax.errors import InputError
from dim_jax.paths import AnyPath, local
from dim_jax.weights.files import DTYPES, Info, check_beginning

TORCH_NAMES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}


class TorchFile:
    """A `.pth` file: a dictionary of tensors, or one under "state_dict".

    Raises:
        InputError: torch is not installed; the file is missing, truncated or damaged; it holds anything but tensors (code is never run);
            or a dtype that is not supported.
    """

    header: str | None = None

    def __init__(self, path: AnyPath):
        try:
            import torch
        except ImportError as error:
            raise InputError(f"{path}: reading a .pth file needs PyTorch. Install it with: pip install 'dim_jax[torch]'") from error
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file.")
        check_beginning(path)
        try:
            content: Any = torch.load(local(path), map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path}: refused, because it holds more than tensors (it would run code, or is damaged): {_first_line(error)}. "
                "Save the plain dictionary of tensors again."
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            raise InputError(
                f"{path}: no whole .pth file ({_first_line(error)}). It is truncated, damaged or older than torch 1.6."
            ) from error
        tensors = content.get("state_dict", content) if isinstance(content, dict) else content
        if not isinstance(tensors, dict) or not tensors:
            raise InputError(f'{path}: a dictionary of tensors is expected, or one under "state_dict"; found {type(tensors).__name__}.')
        strange = [f"{name} ({type(value).__name__})" for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
        if strange:
            raise InputError(f"{path}: these are no tensors: {', '.join(strange)}. Keep only tensors in the dictionary.")
        unsupported = [f"{name} ({value.dtype})" for name, value in tensors.items() if str(value.dtype) not in TORCH_NAMES]
        if unsupported:
            raise InputError(
                f"{path}: dtypes other than {', '.join(DTYPES)} are not supported: {', '.join(unsupported)}. Convert them first."
            )
        self._tensors = {str(name): value.detach() for name, value in tensors.items()}
        self.tensors = {name: Info(TORCH_NAMES[str(value.dtype)], tuple(value.shape)) for name, value in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped from the file; not checked for finite values."""
        import torch

        tensor = self._tensors[name]
        if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16 of its own
            return tensor.view(torch.uint16).numpy().view(DTYPES["BF16"])
        return tensor.numpy()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
