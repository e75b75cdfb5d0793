"""The description of the routes as an OpenAPI document."""

from __future__ import annotations

from typing import Any

__all__ = ["open_api"]

IMAGE = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}
TOP = {"name": "top", "in": "query", "description": "Classes to name.", "schema": {"type": "integer", "default": 3}}
CODES = {
    "400": "The request is malformed.",
    "408": "The request arrived too slowly.",
    "413": "The body is too large.",
    "422": "The image cannot be read.",
    "503": "The server is busy: try again after Retry-After seconds.",
    "504": "The answer took too long.",
}


def open_api(name: str, version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the server of a model."""
    model = f"/v2/models/{name}"
    return {
        "openapi": "3.1.0",
        "info": {"title": f"mlpconv: {name}", "version": version},
        "paths": {
            "/predict": {"post": _operation("Classify an image file, or several in a form.", image=True)},
            "/maps": {"post": _operation("Return the category maps of the most probable classes.", image=True)},
            "/v2": {"get": _operation("Name the server.")},
            "/v2/health/live": {"get": _operation("Answer 200 while the server runs.")},
            "/v2/health/ready": {"get": _operation("Answer 200 while the server can classify, else 503.")},
            model: {"get": _operation("Describe the inputs, outputs and classes of the model.")},
            f"{model}/ready": {"get": _operation("Answer 200 while the model can classify, else 503.")},
            f"{model}/infer": {"post": _operation("Run the model (Open Inference Protocol 2, JSON or binary).")},
            "/metrics": {"get": _operation("Return the metrics for Prometheus.")},
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["code", "message", "id"],
                    "properties": {part: {"type": "string"} for part in ("code", "message", "id")},
                }
            }
        },
    }


def _operation(summary: str, *, image: bool = False) -> dict[str, Any]:
    """Describe one method of a route."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses = {"200": {"description": "The answer."}}
    if not image:
        return {"summary": summary, "responses": responses}
    failures = {code: {"description": text, "content": error} for code, text in CODES.items()}
    return {"summary": summary, "parameters": [TOP], "requestBody": IMAGE, "responses": responses | failures}
