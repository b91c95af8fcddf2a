"""What this machine is, for code that is compiled for it alone."""

import pathlib
import platform


def describe_processor():
    """Returns what the processor can do, bytes: homes, and the caches in them, are shared between machines."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        return f"{platform.machine()} {platform.processor()}".encode()
    lines = path.read_bytes().split(b"\n\n")[0].splitlines()
    return b"\n".join(
        line for line in lines if line.split(b"\t")[0] in (b"model name", b"flags", b"Features")
    )
