"""Models of the Hugging Face hub by their ids: what is in the cache of its library, and one quiet question for what is not."""

from pathlib import Path

from dim_jax.errors import InputError, first_line

TIMEOUT = 5.0  # seconds


def cached_snapshot(name: str, *files: str) -> Path | None:
    """The folder in the cache of the hub's library that has one of these files of the model `name`; None: there is none.

    Raises:
        InputError: `name` cannot be an id.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        paths = [try_to_load_from_cache(name, file) for file in files]
    except HFValidationError as error:
        raise _not_found(name, f"as an id of the hub it is not valid: {error}") from error
    return next((Path(path).parent for path in paths if isinstance(path, str)), None)


def check_hub_id(name: str) -> None:
    """Ask the hub once whether it has the model `name`. Its library, asked for a file, would try for a minute and warn each time.

    Raises:
        InputError: the hub has no such model, or cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(name, timeout=TIMEOUT)
    except errors.OfflineModeIsEnabled as error:
        raise _not_found(name, "HF_HUB_OFFLINE is set") from error
    except errors.RepositoryNotFoundError as error:
        raise _not_found(name, "the hub has no such model, or it is private") from error
    # Of httpx or its fork, whichever this version of the library uses.
    except (errors.HTTPError, OSError, ValueError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise _not_found(name, first_line(error)) from error


def _not_found(name: str, reason: str) -> InputError:
    return InputError(
        f"{name}: is not a folder or file here, nor in the cache of the Hugging Face hub, and cannot be fetched from it ({reason}). "
        "Check the spelling, or give a folder."
    )
