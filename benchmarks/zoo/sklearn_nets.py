"""Estimators of scikit-learn for handwritten digits of 64 pixels; each function gives one that is not fitted yet."""

from __future__ import annotations

from typing import Any


def mlp(seed: int) -> Any:
    """A multi-layer perceptron with scaled pixels."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), MLPClassifier((128, 64), alpha=1e-3, max_iter=200, random_state=seed))


def pipeline(seed: int) -> Any:
    """Scaling, principal components, logistic regression."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), PCA(40, random_state=seed), LogisticRegression(C=0.3, max_iter=500))
