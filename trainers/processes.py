"""A job in several processes: `accelerate launch` on the same job's files, one set of weights comes out.

`redistill.trainers.worker` starts them where a job says so; on several machines the same can be typed:
`accelerate launch ... -m redistill.trainers.processes JOB_FOLDER RUN_FOLDER`. The first process tells events on
stdout and publishes; any that fails writes the result, and ends all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .trainer import Emit, Job, Result, trainer_class

_PORT = "0"
"""Any that is free."""


def world() -> int:
    """Return how many processes share the job that this process works on."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this process is the one that tells and publishes."""
    return int(os.environ.get("RANK", "0")) == 0


def launch(job_folder: Path, run_folder: Path, count: int, emit: Emit) -> Result:
    """Run a job in several processes of this machine, and return its result.

    Args:
        job_folder: holds `job.json` and the rows.
        run_folder: what the job's paths are relative to.
        count: processes; on GPUs one for each.
        emit: takes each event of the first process.
    """
    outcome = job_folder / "result.json"
    outcome.unlink(missing_ok=True)
    job = Job.read(job_folder, run_folder)
    [(name, told)] = job.trainer.items()
    rows = trainer_class(name).model_validate(told).batch_size
    if rows % count:
        what = f"batch_size: {count} processes cannot share {rows} rows evenly"
        refused = Result(status="failed", message=what)
        refused.write(job_folder)
        return refused
    # `--multi_gpu` is how accelerate's launcher is told to start several at all: with `--cpu` it was seen to
    # start one, unless there is an MPI. The job itself says that they are to train on the processor.
    command = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", str(count), "--num_machines", "1", "--main_process_port", _PORT]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", __name__]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, job.threads // count))}
    with subprocess.Popen(
        [*command, str(job_folder), str(run_folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            emit(json.loads(line))
    if outcome.exists():
        return Result.of(job_folder)
    return Result(status="failed", message=f"{count} processes ended with {process.returncode}")


def main() -> None:
    """Work on a job as one of several processes."""
    from ..policies.child import claim_stdout, die_with_parent
    from .trainer import run_here

    die_with_parent()
    events = claim_stdout()
    job_folder, run_folder = map(Path, sys.argv[1:3])

    def tell(event: dict[str, object]) -> None:
        print(json.dumps(event), file=events, flush=True)

    result = run_here(job_folder, run_folder, tell if first() else lambda _: None)
    if result.status != "trained":
        sys.exit(1)


if __name__ == "__main__":
    main()
