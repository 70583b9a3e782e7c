"""Everything this project refuses, as one tree.

SplitInferenceError
   - WireError                    what arrived cannot be answered: the sender's side
      - MalformedFrameError          the bytes are not a frame, or a payload does not unpack to what its header says
      - UnknownCodecError            a frame or a setting names a codec that this side does not have
      - UnknownModelError            no model of that name is served here
      - UnknownSplitPointError       the model has no such split point
      - DigestMismatchError          the other side has other weights or another table of split points
      - TooLargeError                more bytes, samples or pixels than the stated limit
      - FeatureMismatchError         shape or dtype is not what the tail expects, or values are not finite
      - MalformedInputError          an encoded image or sound that cannot be read
      - UnsupportedMediaError        a content type that this model does not take
      - SlowSenderError              the body did not arrive within the stated time
      - UnauthorizedError            no token, or none that is known here
      - OverShareError               the client is over its own rate or share; the same one may be sent again later
      - OverloadedError              too many requests are waiting already; the same one may be sent again later
         - DeadlineError                the answer would come after the request's own deadline
   - UsageError                   what the user asked for cannot be done: one line, exit code 2
      - ModelLoadError               a URI, file or network that gives no model
         - UnsafeModelError             loading it would run code that nobody asked for
      - ModelExportError             torch.export refuses the model, or its graph cannot be split
      - DataError                    a folder or file of inputs that is missing or not understood
      - ConfigError                  config.yaml or another file of ours says something impossible
   - ServerError                  the server answered with an error, or not at all: the client's view

Raised where the fact is known, translated once: to HTTP statuses in serve_app/ingress.py, to exit codes in cli.py.
Every message is one line: what is wrong, where, and what to do.
"""

from __future__ import annotations


class SplitInferenceError(Exception):
    """The root: catch this to catch every refusal of this project."""


class WireError(SplitInferenceError):
    """What arrived cannot be answered; the sender has to change something."""


class MalformedFrameError(WireError):
    """The bytes are not a frame, or a payload does not unpack to what its header says."""


class UnknownCodecError(WireError):
    """A frame or a setting names a codec that this side does not have."""


class UnknownModelError(WireError):
    """No model of that name is served here."""


class UnknownSplitPointError(WireError):
    """The model has no such split point; the message names the nearest ones."""


class DigestMismatchError(WireError):
    """The other side has other weights or another table of split points."""


class TooLargeError(WireError):
    """More bytes, samples or pixels than the stated limit."""


class FeatureMismatchError(WireError):
    """Shape or dtype is not what the tail expects, or values are not finite."""


class MalformedInputError(WireError):
    """An encoded image or sound that cannot be read."""


class UnsupportedMediaError(WireError):
    """A content type that this model does not take."""


class SlowSenderError(WireError):
    """The body did not arrive within the stated time; the same request may be sent again."""


class UnauthorizedError(WireError):
    """No token, or none that is known here; nothing more is said."""


class OverShareError(WireError):
    """The client has used up its own rate or share; others have not. The same request may be sent again later.

    `retry_after_s` says when.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(WireError):
    """Too many requests are waiting already; the same one may be sent again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(OverloadedError):
    """The answer would come after the request's own deadline; the same one may be sent again later."""


class UsageError(SplitInferenceError):
    """What the user asked for cannot be done; commands print the line and exit with code 2."""


class ModelLoadError(UsageError):
    """A URI, file or network that gives no model."""


class UnsafeModelError(ModelLoadError):
    """Loading it would run code that nobody asked for."""


class ModelExportError(UsageError):
    """torch.export refuses the model, or its graph cannot be split."""


class DataError(UsageError):
    """A folder or file of inputs that is missing or not understood."""


class ConfigError(UsageError):
    """config.yaml or another file of ours says something impossible."""


class ServerError(SplitInferenceError):
    """The server answered with an error status, or not at all.

    `status` is the HTTP status, or None where no answer came; `retriable` says whether the same request
    may be sent again (inference is a pure function of the frame, so a retry is always safe). `attempts` is how often
    the request was sent, where somebody counts: 0 says that its time was over before. `by_proxy` says that the answer
    was not in our server's words.
    """

    attempts: int = 0
    by_proxy: bool = False

    def __init__(self, message: str, *, status: int | None = None, retriable: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.retriable = retriable
