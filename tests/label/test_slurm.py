"""Labels over a real Slurm of one node, with jobs that are canceled in mid-run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxal.label.methods.tblite import tblite
from jaxal.label.task import OPEN, LabelError, Task
from jaxal.label.workers import broker, cluster
from jaxal.label.workers.executor import Executor, Recipe, Setting, run_all

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from slurm_one_node import missing, one_node  # noqa: E402

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a Slurm")
pytest.importorskip("parsl", reason="Parsl is not installed: pip install '.[cluster]'")


def labeled(*arguments: object) -> list[str]:
    script = SCRIPTS / "slurm_labels.py"
    process = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout.splitlines()


@pytest.mark.slow
def test_a_canceled_job_loses_no_label():
    gfn2, qe, verdict = labeled("--gfn2", 8, "--qe", 2)
    assert gfn2.startswith("GFN2-xTB: 8 of 8 labels") and qe.startswith("Quantum ESPRESSO: 2 of 2 labels")
    assert verdict.startswith("PASSED: 8 GFN2-xTB and 2 Quantum ESPRESSO labels") and verdict.endswith(", 0 problems")


@pytest.mark.slow
def test_canceled_jobs_of_a_longer_run_lose_no_label():
    assert labeled("--gfn2", 40, "--qe", 8)[-1].startswith("PASSED: 40 GFN2-xTB and 8 Quantum ESPRESSO labels")


HYDROGEN = Task(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 0.74]]), *OPEN, 0, 0)


def opened(folder: Path, **options) -> Executor:
    return cluster.slurm(lost_after=5.0, **options)(Setting(Recipe("tblite", {}), 60.0, 0, folder))


@pytest.mark.slow
def test_what_slurm_is_asked_for_refuses_and_has_forgotten(tmp_path, monkeypatch):
    """Options reach Slurm; a partition that is not there is one line; a job that Slurm no longer knows has ended."""
    with one_node() as where:
        for name, value in where.items():
            monkeypatch.setenv(name, value)
        resources = {"launcher": "srun", "memory": 2, "cores": 2, "walltime": 120.0, "address": "127.0.0.1"}
        lines = {"scheduler_options": ["#SBATCH --comment=asked"], "worker_init": [f"env > {tmp_path}/environment"]}
        executor = opened(tmp_path, **resources, **lines)
        try:
            assert run_all(executor, [HYDROGEN])[0].energy == pytest.approx(tblite().calculate(HYDROGEN).energy)
            job = subprocess.run(["scontrol", "show", "job"], capture_output=True, text=True).stdout
            for what in ("Comment=asked", "MinMemoryNode=2G", "CPUs/Task=2", "TimeLimit=00:02:00"):
                assert what in job
            assert "SLURM_JOB_ID=" in (tmp_path / "environment").read_text()
        finally:
            executor.close()

        executor = opened(tmp_path, partition="nowhere")
        try:
            with pytest.raises(LabelError, match=r"^executor: slurm has no working block: .*invalid partition") as no:
                run_all(executor, [HYDROGEN])
            assert "\n" not in str(no.value)
        finally:
            executor.close()

        options = dict.fromkeys(("partition", "account"), "") | dict.fromkeys(("worker_init", "scheduler_options"), ())
        options |= {"nodes": 1, "workers": 1, "cores": 1, "memory": None, "first_blocks": 0, "blocks": 1}
        from parsl.jobs.states import JobState, JobStatus

        provider = broker._slurm(options | {"walltime": 60.0, "exclusive": False, "launcher": "simple"})
        provider.resources["987654"] = {
            "status": JobStatus(JobState.RUNNING),
            "job_stdout_path": str(tmp_path / "out"),
            "job_stderr_path": str(tmp_path / "err"),
        }
        (status,) = provider.status(["987654"])
        assert status.terminal
