"""The error tree of the whole project.

    EdgemlError                     exit code
    ├── UsageError                  2   what you typed or handed in cannot be used
    │   ├── PlanError                   an export option, calibration or evaluation file
    │   ├── ModelError                  a model file that is not what it says
    │   ├── InputError                  a tensor given to a session
    │   └── ConfigError                 a configuration file
    ├── ParityError                 3   the result is not the model
    │   ├── BundleError                 a bundle whose bytes are not what its manifest promises
    │   └── SelfTestError               golden vectors missed on this machine
    ├── BudgetError                 4   the accuracy drop is over the budget
    ├── UnsupportedError            5   an operator, layout or source no converter here can do
    └── EnvironmentProblem          6   this machine, its packages or the network
        ├── MissingExtraError           an optional dependency that is not installed
        ├── WorkerError                 a converter process that died or ran out of time or memory
        ├── EngineError                 an engine that refused or failed
        │   ├── EngineDownError             its process died; it is started again
        │   │   └── EngineHungError         it gave no answer and was ended
        │   └── DeadlineError               no answer within the time the caller gave
        ├── UpdateError                 an update that could not be installed; the old version still runs
        ├── LinkError                   broker or service unreachable
        └── ServiceError                a request the service refused

Split by what the caller does next. A message says what is wrong, what was expected, what was found, and the way out.
"""

from __future__ import annotations

from typing import ClassVar


class EdgemlError(Exception):
    """Root of the tree.

    Args:
        what: the claim, with identifiers in `repr`.
        expected, got: the two sides, already readable; both or neither.
        hint: the way out, an imperative ("add the batch axis").
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, expected: str | None = None, got: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.hint = hint
        message = what
        if expected is not None:
            message += f": expected {expected}"
        if got is not None:
            message += f", got {got}" if expected is not None else f": got {got}"
        if hint is not None:
            message += f"; {hint}"
        super().__init__(message)


class UsageError(EdgemlError):
    """What was typed or handed in cannot be used."""

    exit_code = 2


class PlanError(UsageError):
    """An export option, calibration or evaluation file that cannot be used."""


class ModelError(UsageError):
    """A model file that is truncated, garbage, or not what its name says."""


class InputError(UsageError):
    """A tensor handed to a session that does not fit its signature."""


class ConfigError(UsageError):
    """A configuration file that cannot be used."""


class ParityError(EdgemlError):
    """A converted artifact does not compute what its source computes."""

    exit_code = 3


class BundleError(ParityError):
    """A bundle whose bytes are not what its manifest promises."""


class SelfTestError(ParityError):
    """An artifact missed its golden vectors on this machine."""


class BudgetError(EdgemlError):
    """The accuracy drop is over the budget the user set."""

    exit_code = 4


class UnsupportedError(EdgemlError):
    """No converter here can do this; the operator, layout or source is named."""

    exit_code = 5


class EnvironmentProblem(EdgemlError):  # noqa: N818 - `EnvironmentError` is a built-in name
    """This machine, its packages or the network stand in the way."""

    exit_code = 6


class MissingExtraError(EnvironmentProblem):
    """An optional dependency is not installed.

    Args:
        package: the import that failed.
        extra: the extra of `edgeml-toolkit` that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package!r} is not installed", hint=f"install edgeml-toolkit[{extra}]")


class WorkerError(EnvironmentProblem):
    """A converter process died, hung or ran out of memory."""


class EngineError(EnvironmentProblem):
    """An inference engine refused a model or failed in a call. `code` is the stable word that telemetry carries."""

    code: ClassVar[str] = "engine"


class EngineDownError(EngineError):
    """The process of an isolated engine died, or is not up again yet; the application is unharmed."""

    code = "engine_crash"


class EngineHungError(EngineDownError):
    """An isolated engine gave no answer for so long that its process was ended."""

    code = "engine_hang"


class DeadlineError(EngineError):
    """No answer within the time the caller gave; the engine may still be at it."""

    code = "deadline"


class UpdateError(EnvironmentProblem):
    """An update could not be installed; the version that ran before still runs.

    `code` is the stable word that reports carry; `retryable` says whether trying again can help.
    """

    def __init__(self, what: str, *, code: str, retryable: bool, hint: str | None = None) -> None:
        self.code = code
        self.retryable = retryable
        super().__init__(what, hint=hint)


class LinkError(EnvironmentProblem):
    """The broker or the service cannot be reached."""


class ServiceError(EnvironmentProblem):
    """The service answered, and refused.

    `status` is the HTTP status it answered with.
    """

    def __init__(self, what: str, *, status: int, hint: str | None = None) -> None:
        self.status = status
        super().__init__(what, hint=hint)
