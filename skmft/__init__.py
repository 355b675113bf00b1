"""Meta Fine-Tuning of text classifiers over several domains, as a scikit-learn estimator."""

from .classifier import MetaFineTunedClassifier

__version__ = "0.1.0"
__all__ = ["MetaFineTunedClassifier", "__version__"]
