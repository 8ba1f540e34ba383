"""Labels over a real Slurm of one node, with jobs that are canceled in mid-run."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from slurm_one_node import missing, one_node  # noqa: E402

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a Slurm")
pytest.importorskip("parsl", reason="Parsl is not installed: pip install '.[cluster]'")


def labeled(*arguments: object) -> list[str]:
    script = SCRIPTS / "slurm_labels.py"
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_canceled_job_loses_no_label():
    gfn2, qe, verdict = labeled("--gfn2", 8, "--qe", 2)
    assert gfn2.startswith("GFN2-xTB: 8 of 8 labels") and qe.startswith("Quantum ESPRESSO: 2 of 2 labels")
    assert verdict.startswith("PASSED: 8 GFN2-xTB and 2 Quantum ESPRESSO labels") and verdict.endswith(", 0 problems")


@pytest.mark.slow
def test_canceled_jobs_of_a_longer_run_lose_no_label():
    assert labeled("--gfn2", 40, "--qe", 8)[-1].startswith("PASSED: 40 GFN2-xTB and 8 Quantum ESPRESSO labels")


def test_what_slurm_refuses_and_what_it_has_forgotten(tmp_path, monkeypatch):
    """A partition that is not there is one line; a job that Slurm no longer knows is not taken for one that runs."""
    import numpy as np
    from parsl.jobs.states import JobState, JobStatus

    import jaxal.label.tblite  # noqa: F401  registers
    from jaxal.label import broker, cluster
    from jaxal.label.executor import Recipe, Setting, run_all
    from jaxal.label.task import LabelError, Task

    hydrogen = Task(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 0.74]]), np.zeros((3, 3)), 0, 0)
    with one_node() as where:
        for name, value in where.items():
            monkeypatch.setenv(name, value)
        part = cluster.slurm(partition="nowhere", lost_after=5.0)
        executor = part(Setting(Recipe("tblite", {}), None, 0, tmp_path))
        try:
            with pytest.raises(
                LabelError, match=r"^executor: slurm has no working block: .*invalid partition"
            ) as error:
                run_all(executor, [hydrogen])
            assert "\n" not in str(error.value)
        finally:
            executor.close()

        options = dict.fromkeys(("partition", "account"), "") | dict.fromkeys(("worker_init", "scheduler_options"), ())
        options |= {"nodes": 1, "workers": 1, "cores": 1, "memory": None, "first_blocks": 0, "blocks": 1}
        provider = broker._slurm(options | {"walltime": 60.0, "exclusive": False, "launcher": "simple"})
        provider.resources["987654"] = {
            "status": JobStatus(JobState.RUNNING),
            "job_stdout_path": str(tmp_path / "out"),
            "job_stderr_path": str(tmp_path / "err"),
        }
        (status,) = provider.status(["987654"])
        assert status.terminal
