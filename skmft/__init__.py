"""Meta Fine-Tuning of text classifiers over several domains, as a scikit-learn estimator."""

from importlib import import_module
from types import ModuleType

from ._persistence.folder import PersistenceError
from .classifier import MetaFineTunedClassifier

__version__ = "0.2.0"  # the one place: pyproject.toml reads it here
_MODULES = ("baselines", "datasets", "inspection", "metrics", "model_selection", "recipes")
__all__ = ["MetaFineTunedClassifier", "PersistenceError", "__version__", *_MODULES]


def __getattr__(name: str) -> ModuleType:
    """Public modules, imported when they are first asked for."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
