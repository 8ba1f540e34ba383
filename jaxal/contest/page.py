from pathlib import Path


def write(folder, contest, entered, results):
    return Path(folder) / "contest.html"
