"""The image files of a request: its body, or the parts of a multipart form, whose number and headers are limited."""

from __future__ import annotations

import re

from mlpconv.deploy.guard import Refusal

__all__ = ["MAX_PARTS", "files_of"]

MAX_PARTS = 64
MAX_PART_HEADER = 4096
BOUNDARY = re.compile(r'multipart/form-data\s*;\s*boundary="?([0-9A-Za-z\'()+_,./:=? -]{1,70})"?\s*$', re.IGNORECASE)


def files_of(body: bytes, content_type: str) -> list[bytes]:
    """Return the image files in a body; raise Refusal if there is none, or too many or malformed parts."""
    if not content_type.lower().startswith("multipart/"):
        if not body:
            raise Refusal(400, "empty", "The body is empty: send the bytes of an image file.")
        return [body]
    match = BOUNDARY.match(content_type)
    if match is None:
        raise Refusal(400, "form", "The form has no valid boundary; send multipart/form-data, or the image itself.")
    delimiter = b"\r\n--" + match[1].encode()
    parts = (b"\r\n" + body).split(delimiter, MAX_PARTS + 2)
    if len(parts) > MAX_PARTS + 2:
        raise Refusal(413, "too_many", f"The form has more than {MAX_PARTS} parts.")
    if len(parts) < 3 or parts[0] or not parts[-1].startswith(b"--"):
        raise Refusal(400, "form", "The form is malformed or cut short, or has no parts.")
    return [_content(part) for part in parts[1:-1]]


def _content(part: bytes) -> bytes:
    """Return the content of a part without its headers."""
    head, separator, content = part.partition(b"\r\n\r\n")
    if not separator or len(head) > MAX_PART_HEADER or not part.startswith(b"\r\n"):
        raise Refusal(400, "form", "A part of the form is malformed.")
    return content
