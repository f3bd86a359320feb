"""What who lives in the lab sends."""

from __future__ import annotations

import struct

from ipmasq_agent.lab.inhabitant import internet_checksum


def test_a_checksum_over_a_message_with_its_checksum_is_zero() -> None:
    message = struct.pack("!BBHHH", 8, 0, 0, 7, 1) + b"token"
    filled = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
    assert internet_checksum(filled) == 0
