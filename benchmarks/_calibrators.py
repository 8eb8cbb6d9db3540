"""Other ways than one temperature to make confidences fit the hits, each fitted on one half and judged on the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from scipy.optimize import minimize

from benchmarks._deferral import Answers
from edgeml.exporter.parity.answers import probabilities
from edgeml.exporter.parity.confidence import calibration_error, fit_temperature
from edgeml.runtime.backends import Array

DEALS: Final = 40
FIT_SAMPLES: Final = 2000
LEAST: Final = 1e-7
Calibrator = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(log probabilities and classes to fit on, log probabilities of others) -> confidence and class of the others."""


def compared(answers: Answers) -> dict[str, float]:
    """Held-out calibration error of all samples by calibrator, in the mean of the same deals."""
    plain = msgspec.structs.replace(answers.post, temperature=1.0)
    logs = np.log(np.maximum(probabilities(plain, {answers.post.output: answers.rows}), LEAST))
    labels = answers.case.labels
    errors: dict[str, list[float]] = {name: [] for name in ("nothing", "temperature", *CALIBRATORS)}
    generator = np.random.default_rng(4)
    for _ in range(DEALS):
        here = answers.case.deal(generator)
        got = {name: (np.zeros(len(here)), np.zeros(len(here), np.bool_)) for name in errors}
        for half in (here, ~here):
            temperature = fit_temperature(answers.post, *answers.of(half))
            for name, by in (("nothing", 1.0), ("temperature", temperature)):
                got[name][0][~half], got[name][1][~half] = answers.read(by, ~half)
            few = np.flatnonzero(half)[:FIT_SAMPLES]
            for name, calibrator in CALIBRATORS.items():
                confidence, classes = calibrator(logs[few], labels[few], logs[~half])
                got[name][0][~half], got[name][1][~half] = confidence, classes == labels[~half]
        for name, (confidence, right) in got.items():
            errors[name].append(calibration_error(confidence, right))
    return {name: float(np.mean(found)) for name, found in errors.items()}


def vector(logs: Array, labels: Array, others: Array) -> tuple[Array, Array]:
    """Vector scaling (Guo et al., 2017): a factor and an offset for each class."""
    classes = logs.shape[1]
    rows = np.arange(len(labels))

    def cost(x: Array) -> tuple[float, Array]:
        shares = _softmax(logs * x[:classes] + x[classes:])
        loss = -np.log(np.maximum(shares[rows, labels], 1e-12)).mean()
        shares[rows, labels] -= 1
        return float(loss), np.concatenate([(shares * logs).mean(axis=0), shares.mean(axis=0)])

    found = minimize(cost, np.concatenate([np.ones(classes), np.zeros(classes)]), jac=True, method="L-BFGS-B").x
    shares = _softmax(others * found[:classes] + found[classes:])
    return shares.max(axis=1), shares.argmax(axis=1)


def beta(logs: Array, labels: Array, others: Array) -> tuple[Array, Array]:
    """Beta calibration of the confidence (Kull et al., AISTATS 2017): logistic in ln c and -ln(1 - c)."""
    from sklearn.linear_model import LogisticRegression

    right = logs.argmax(axis=1) == labels
    if right.all():
        return np.exp(others.max(axis=1)), others.argmax(axis=1)
    model = LogisticRegression(C=100.0).fit(_ends(logs), right)
    return model.predict_proba(_ends(others))[:, 1], others.argmax(axis=1)


def isotonic(logs: Array, labels: Array, others: Array) -> tuple[Array, Array]:
    """The best rising curve of the confidence."""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(np.exp(logs.max(axis=1)), logs.argmax(axis=1) == labels)
    return np.asarray(model.predict(np.exp(others.max(axis=1)))), others.argmax(axis=1)


CALIBRATORS: Final[dict[str, Calibrator]] = {"vector": vector, "beta": beta, "isotonic": isotonic}


def _ends(logs: Array) -> Array:
    confidence = np.exp(logs.max(axis=1))
    return np.stack([np.log(confidence), -np.log(np.maximum(1 - confidence, LEAST))], axis=1)


def _softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
