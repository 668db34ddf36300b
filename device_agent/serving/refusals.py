"""Why a request to the local API gets no answer: one class per code, each with its status."""

from __future__ import annotations

from typing import ClassVar

from device_agent.errors import ServingError


class RefusalError(ServingError):
    """A request that is not answered.

    Attributes:
        is_closing: The connection cannot be used for another request.
    """

    default_status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, cause: str = "", hint: str = "", is_closing: bool = False
    ) -> None:
        super().__init__(message, status=self.default_status, cause=cause, hint=hint)
        self.is_closing = is_closing


class BadRequestError(RefusalError):
    """The request is not what protocol and model ask for."""

    code = "bad-request"
    default_status = 400


class ForbiddenHostError(RefusalError):
    """The request came for another host's name or from another site's page."""

    code = "forbidden-host"
    default_status = 403
    default_hint = "Address the agent as localhost or 127.0.0.1."


class NotFoundError(RefusalError):
    """There is no such path."""

    code = "not-found"
    default_status = 404


class UnknownModelError(RefusalError):
    """No such model or version is served."""

    code = "unknown-model"
    default_status = 404


class UnknownInferenceError(RefusalError):
    """The agent does not remember this inference (contract M-4.6-1)."""

    code = "unknown-inference"
    default_status = 404
    default_hint = "Only recent inferences of this run of the agent can be judged."


class MethodError(RefusalError):
    """The path takes another method."""

    code = "method"
    default_status = 405


class LengthRequiredError(RefusalError):
    """The body's length is not given."""

    code = "length-required"
    default_status = 411
    default_hint = "Send Content-Length; chunked bodies are not taken."


class TooLargeError(RefusalError):
    """The body is over its bound."""

    code = "too-large"
    default_status = 413


class UnsupportedEncodingError(RefusalError):
    """The body is compressed."""

    code = "unsupported-encoding"
    default_status = 415
    default_hint = "Send the body without Content-Encoding."


class QueueFullError(RefusalError):
    """Too many requests wait for this model already."""

    code = "queue-full"
    default_status = 429
    default_hint = "Ask again later, or less often."


class HeaderTooLargeError(RefusalError):
    """The request's head is over its bound."""

    code = "header-too-large"
    default_status = 431


class RejectedError(RefusalError):
    """The deadline could not be met, so the work was not begun."""

    code = "rejected"
    default_status = 503
    default_hint = "Ask with a later deadline, or when fewer others do."


class BusyError(RefusalError):
    """The agent has as many connections, or bytes in work, as it may."""

    code = "busy"
    default_status = 503


class NotReadyError(RefusalError):
    """Nothing, or not this, can be served at the moment."""

    code = "not-ready"
    default_status = 503


class DeadlineError(RefusalError):
    """The answer did not come before its deadline."""

    code = "deadline"
    default_status = 504
