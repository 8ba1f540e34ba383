"""The progress display: one line for each update in a file, a live picture in a terminal."""

import io
import os
import pty
import subprocess
import sys

from jaxal.report.display import Status, clock, display, line

FULL = Status("explore", 3725.4, 1.5, 42, 3, 400, 0.025, 0.151, 0.0774, 61.0, "wrote [a] frame")


def test_a_status_is_one_line_in_the_units_of_the_field():
    assert line(FULL) == (
        "1:02:05 explore  ps 1.50  labels 42/400 (3 failed)  gate 2.5%  estimated 151 meV/Å  true 77 meV/Å  "
        "left 1:01  wrote [a] frame"
    )
    assert line(Status("compile", 0.0)) == "0:00 compile  ps 0.00  labels 0"  # what is not known is not shown


def test_clock():
    assert [clock(s) for s in (-1, 0.4, 59.6, 3599, 3600, 90061)] == [
        "0:00",
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]


def test_a_file_gets_lines_and_not_too_many():
    file = io.StringIO()
    with display(file) as update:
        for second in range(25):
            update(FULL._replace(elapsed=float(second), message=""))
        update(FULL._replace(elapsed=25.0, phase="train", message=""))
        update(FULL._replace(elapsed=26.0, phase="train"))
    lines = file.getvalue().splitlines()
    assert [text.split("  ")[0] for text in lines] == [
        "0:00 explore",
        "0:10 explore",
        "0:20 explore",
        "0:25 train",
        "0:26 train",
    ]
    assert lines[-1].endswith("wrote [a] frame") and "\x1b" not in file.getvalue()


def test_a_terminal_gets_a_live_picture():
    program = """
import time
from jaxal.report.display import Status, display
with display() as update:
    update(Status("explore", 10.0, 1.5, 42, 3, 400, message="wrote [a] frame"))
    time.sleep(2.2)
"""
    main, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    run = subprocess.Popen([sys.executable, "-c", program], stdout=child, stderr=child, env=environment)
    os.close(child)
    text = b""
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # Linux tells the end of a terminal this way
            break
        if not chunk:
            break
        text += chunk
    os.close(main)
    assert run.wait() == 0
    shown = text.decode()
    assert "0:10 explore" in shown and "42/400 (3 failed)" in shown and "wrote [a] frame" in shown
    assert "0:12 explore" in shown  # the clock goes on between two updates
    assert "\x1b[" in shown
