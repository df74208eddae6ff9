"""Values that must survive the way there and back, in either codec."""

from typing import Any, Final

BODIES: Final[list[Any]] = [
    {"text": 'grüße 世界 🎈 \u0000\n\t"\\/\u2028', "ключ": ["", " "]},
    [[[{"a": {"b": [{"c": None}]}}]], [], {}, True, False],
    {"small": -1, "big": 2**53, "negative": -(2**63), "float": 1.5, "whole": 2.0, "tiny": 5e-324},
    "a text",
    7,
    [],
]
