#!/usr/bin/env bash
# Two tasks of one run on the CPU, queued again ahead of the end of the job: as README.md says
#SBATCH --ntasks=2 --time=2 --signal=USR1@60 --requeue --open-mode=append --output=job-%j.log
srun --unbuffered "${PYTHON:-python}" -m nanochat.train +phase=base model=d2 trainer=slurm trainer.accelerator=cpu \
    size=laptop data=pydocs run_name=slurm resume=auto compute.compile=false eval_every=null sample_every=null "$@"
