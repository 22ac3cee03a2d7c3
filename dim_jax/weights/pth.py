"""PyTorch's `.pth` files, mapped and read without running any code in them."""

import pickle
from typing import Any

import numpy as np

from dim_jax.checkpoint import TensorInfo
from dim_jax.errors import InputError, check, first_line, listed
from dim_jax.storage.paths import AnyPath, local_path
from dim_jax.weights.files import DTYPES, check_file_type
from dim_jax.weights.lazy import LazyTensors, from_loader


def open_pth(path: AnyPath) -> LazyTensors:
    """The tensors of a `.pth` file: a dictionary of them, or one under "state_dict". Their data is not checked for finite values.

    Raises:
        InputError: torch is not installed; the file is missing, truncated or damaged; it holds anything but tensors (code is never run);
            or a dtype that is not supported.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: reading a .pth file needs PyTorch. Install it with: pip install 'dim_jax[torch]'") from error
    check(path.is_file(), f"{path}: there is no such file. Check the path.")
    check_file_type(path)
    try:
        content: Any = torch.load(local_path(path), map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused, because it holds more than tensors (it would run code, or is damaged): {_first_line(error)}. "
            "Save the plain dictionary of tensors again."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: is not a complete .pth file ({_first_line(error)}). It is truncated, damaged or older than torch 1.6."
        ) from error
    tensors = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not tensors:
        raise InputError(f'{path}: it must be a dictionary of tensors, or have one under "state_dict"; found {type(tensors).__name__}.')
    strange = [f"{name} ({type(value).__name__})" for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    check(not strange, f"{path}: these are not tensors: {listed(strange)}. Keep only tensors in the dictionary.")
    dtypes = {torch.float32: DTYPES["F32"], torch.bfloat16: DTYPES["BF16"], torch.float16: DTYPES["F16"]}
    unsupported = [f"{name} ({value.dtype})" for name, value in tensors.items() if value.dtype not in dtypes]
    check(not unsupported, f"{path}: dtypes other than {', '.join(DTYPES)} are not supported: {listed(unsupported)}. Convert them first.")
    tensors = {str(name): value.detach() for name, value in tensors.items()}

    def load(name: str) -> np.ndarray:
        tensor = tensors[name]
        if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16 of its own
            return tensor.view(torch.uint16).numpy().view(DTYPES["BF16"])
        return tensor.numpy()

    return from_loader({name: TensorInfo(tuple(value.shape), dtypes[value.dtype]) for name, value in tensors.items()}, load)


def _first_line(error: Exception) -> str:
    return first_line(error).rstrip(".")
