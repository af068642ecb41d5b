"""What tests that start processes need."""

from __future__ import annotations

import signal
import socket


def heed_interrupts() -> None:
    """For Popen's preexec_fn: a shell's background jobs, and what they start, are deaf to SIGINT otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
