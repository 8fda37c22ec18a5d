"""Memory of this process."""

import resource
import sys
from pathlib import Path


def peak() -> float:
    """MiB resident at most since the process was started; what its parent had does not count, as it does in ru_maxrss on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
