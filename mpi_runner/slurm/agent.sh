#!/bin/sh
# Starts mpirun's daemon on a node of a Slurm job. SIGTERM, which Slurm sends to the tasks of a job that is preempted,
# does not reach the daemon in its session of its own: it goes to the job's script, which ends the run in good order.
trap '[ "$SLURM_PROCID" -eq 0 ] && scancel --batch --signal=TERM "$SLURM_JOB_ID"' TERM  # one node says it for all
setsid prted "$@" &
daemon=$!
while kill -0 "$daemon" 2>/dev/null; do
    wait "$daemon"
done
wait "$daemon"
