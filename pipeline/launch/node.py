"""Starts a stage on one of several machines: reads the rank of this machine and becomes `accelerate launch`.

The `wrapper` command of a recipe runs this program on every machine with the same arguments:

    srun --nodes=2 --ntasks-per-node=1 python -m pipeline.launch.node accelerate.yaml stages/sft.py --config config.yaml
"""

import os
import sys
from pathlib import Path

import yaml

from pipeline.launch.command_line import num_threads

RANKS = ("ALIGNLOOP_MACHINE_RANK", "SLURM_NODEID")  # the first variable that is set is used; SLURM sets the second


def main(profile: str, *script: str) -> None:
    rank = next((os.environ[name] for name in RANKS if os.environ.get(name)), None)
    if rank is None:
        sys.exit(f"error: which machine is this? launch.wrapper must set {' or '.join(RANKS)} to 0, 1, ...")
    settings = yaml.safe_load(Path(profile).read_text(encoding="utf-8"))
    os.environ["OMP_NUM_THREADS"] = str(num_threads(settings["num_processes"] // settings["num_machines"]))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", profile, "--machine_rank", rank]
    os.execv(sys.executable, [*launcher, *script])


if __name__ == "__main__":
    main(*sys.argv[1:])
