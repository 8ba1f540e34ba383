"""Whether other processes are alive, and what they write."""

import time


def alive(pid: int) -> bool:
    """Zombies do not count."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, patience: float = 5.0) -> bool:
    end = time.monotonic() + patience
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def wait_for(path, patience=20.0) -> str:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")
