"""How the addresses are described in ``/openapi.json``, with examples."""

from __future__ import annotations

from typing import Any

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR4nGNs"
    "YIAAJgaKGAAmCACQXTClHgAAAABJRU5ErkJggg=="
)
"""A grey square of 8 pixels, in base64."""

FILE = {"type": "string", "format": "binary"}
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
}
ANSWERS = {
    "type": "object",
    "properties": {
        "run": {"type": "string"},
        "task": {"type": "string"},
        "seconds": {"type": "number"},
        "answers": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["run", "task", "seconds", "answers"],
}
EXAMPLE = {
    "run": "photos-resnet18",
    "task": "classification",
    "seconds": 0.012,
    "answers": [
        {"label": "cat", "probability": 0.93, "labels": ["cat"], "top": [["cat", 0.93]]},
    ],
}
PREDICTED = {"description": "An answer for each image, in order.",
             "content": {"application/json": {"schema": ANSWERS, "example": EXAMPLE}}}  # fmt: skip

BODY = {
    "required": True,
    "description": "Images: one as it is, several as multipart/form-data or as JSON.",
    "content": {
        "application/octet-stream": {"schema": FILE},
        "image/jpeg": {"schema": FILE},
        "image/png": {"schema": FILE},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "file": {"type": "array", "items": FILE},
                    "first": {**FILE, "description": "Of a pair of frames."},
                    "second": FILE,
                },
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "images": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "anyOf": [
                                {"type": "string", "contentEncoding": "base64"},
                                {
                                    "type": "array",
                                    "items": {"type": "string", "contentEncoding": "base64"},
                                    "minItems": 2,
                                    "maxItems": 2,
                                },
                            ]
                        },
                    }
                },
                "required": ["images"],
            },
            "examples": {
                "images": {"value": {"images": [PNG, PNG]}},
                "pairs of frames": {"value": {"images": [[PNG, PNG]]}},
            },
        },
    },
}

WHY = {
    400: "The body is not what its Content-Type says.",
    401: "A token is needed.",
    404: "There is no run of that name.",
    408: "The body came too slowly.",
    413: "Too large, too many pixels, or too many images.",
    415: "A Content-Type that is not read.",
    422: "No image, or one that cannot be decoded.",
    429: "The queue is full; Retry-After says when to ask again.",
    503: "Not ready, about to stop, or it took too long.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Their descriptions, for the addresses that answer with them."""
    return {
        status: {"description": WHY[status], "content": {"application/json": {"schema": ERROR}}}
        for status in statuses
    }


PREDICTION: dict[str, Any] = {
    "responses": {200: PREDICTED, **errors(*WHY)},
    "openapi_extra": {"requestBody": BODY},
}
"""What all addresses that predict have in common."""
