"""Headers are read as nats-py reads them."""

import pytest
from nats.aio.client import Client

from dialback.queue.headers import HeaderClient

BLOCKS = [
    b"request-id: 7\r\nx-frontend-send-ts-ns: 1\r\n\r\n",
    b"Name:value\r\nOther:\tvalue \r\n",
    b"no colon\r\n\r\n: no name\r\n",
    b"two words: x\r\na\x1cb: x\r\n\x1ca: x\r\na\x85: x\r\n a : x\r\n",
    "N\u00e4me: x\r\nUmlaut: \u00e4\r\n".encode(),
    b"Broken: \xff\xfe\r\nTwice: 1\r\nTwice: 2\r\nEmpty:\r\nColons: a:b:c\r\n",
    b"",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_headers_are_read_as_by_nats_py(block: bytes) -> None:
    theirs = Client._parse_header_lines(block)  # pyright: ignore[reportPrivateUsage]
    assert HeaderClient._parse_header_lines(block) == theirs  # pyright: ignore[reportPrivateUsage]


def test_nats_py_reads_headers_with_this_method() -> None:
    read = Client._process_headers  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportUnknownVariableType]
    assert "_parse_header_lines" in read.__code__.co_names
