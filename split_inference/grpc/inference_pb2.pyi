from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class FrameRequest(_message.Message):
    __slots__ = ("frame", "sequence", "logits", "top_k", "deadline_ms", "request_id")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    frame: bytes
    sequence: int
    logits: bool
    top_k: int
    deadline_ms: int
    request_id: str
    def __init__(self, frame: _Optional[bytes] = ..., sequence: _Optional[int] = ..., logits: _Optional[bool] = ..., top_k: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class FrameReply(_message.Message):
    __slots__ = ("reply", "sequence", "status", "error", "reason", "retry_after_ms", "request_id")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    sequence: int
    status: int
    error: str
    reason: str
    retry_after_ms: int
    request_id: str
    def __init__(self, reply: _Optional[bytes] = ..., sequence: _Optional[int] = ..., status: _Optional[int] = ..., error: _Optional[str] = ..., reason: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...
