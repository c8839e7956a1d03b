"""A network that falls silent under a process: a cable that is pulled, not a process that ends.

The kernel drops what arrives at the sockets of this process from now on, so that nobody hears of an
end: no connection is closed or refused, and its ports do not answer.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct
from pathlib import Path

SO_ATTACH_FILTER = 26
# struct sock_filter {code, jt, jf, k}: BPF_RET with 0 bytes kept of each packet
_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_PROGRAM = struct.pack("HP", 1, ctypes.addressof(_NOTHING))


def fall_silent() -> int:
    """Of all TCP sockets that this process has; returns how many they are."""
    found = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        fd = int(entry.name)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            handle = socket.socket(fileno=os.dup(fd))
        except OSError:  # closed meanwhile
            continue
        with handle:
            if handle.family in (socket.AF_INET, socket.AF_INET6):
                handle.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM)
                found += 1
    return found
