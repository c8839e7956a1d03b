"""The metadata service and clients that hang up."""

from __future__ import annotations

import socket
import struct
import threading
import urllib.error
import urllib.request

import pytest
from support import wait_for

from rayburst.dev.cloud.imds import ImdsServer


def token(imds: ImdsServer) -> str:
    asked = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    request = urllib.request.Request(f"{imds.url}/latest/api/token", method="PUT", headers=asked)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def hang_up(imds: ImdsServer, said: bytes) -> None:
    """Say something and go without reading the answer: the other side gets a reset."""
    host, _, port = imds.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(said)


def all_answered() -> bool:
    return not any("process_request_thread" in one.name for one in threading.enumerate())


def test_a_client_that_hangs_up_is_nothing_to_tell(imds, capfd):
    own = token(imds)
    imds.user_data = "x" * 32_000_000  # more than the sockets hold
    whole = f"GET /latest/user-data HTTP/1.0\r\nX-aws-ec2-metadata-token: {own}\r\n\r\n"
    hang_up(imds, b"GET /latest/user-data HT")
    hang_up(imds, whole.encode())
    assert token(imds) != own, "it answers others: those before were taken up"
    wait_for(lambda: all_answered() or None, what="the end of both")
    assert capfd.readouterr().err == ""


def test_an_error_of_its_own_is_told(imds, capfd):
    imds.documents["instance-id"] = 7  # no text
    url = f"{imds.url}/latest/meta-data/instance-id"
    asked = urllib.request.Request(url, headers={"X-aws-ec2-metadata-token": token(imds)})
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(asked, timeout=10)
    wait_for(lambda: all_answered() or None, what="its end")
    assert "has no attribute 'encode'" in capfd.readouterr().err
