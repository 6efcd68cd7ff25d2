"""Packages that only some keys need: whether one is installed, and how it is."""

import importlib.util

# Package -> the extra of pyproject.toml that installs it.
EXTRAS = {
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "bitsandbytes": "lora",
    "py3langid": "data",
    "lm-eval": "eval",
}


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def to_install(package: str) -> str:
    """What to do where a package is missing, as a part of a sentence."""
    extra = EXTRAS.get(package)
    return (
        f"install it, as by pip install 'alignloop[{extra}]'" if extra else f"install it, as by pip install {package}"
    )
