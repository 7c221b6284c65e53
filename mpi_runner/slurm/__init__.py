"""Training runs as Slurm jobs that survive preemption.

==============  =======================================================================================================
file            what it is
==============  =======================================================================================================
`script`        the job's script: what may be asked of Slurm, checked, and put into the template
``job.sbatch``  the template
``agent.sh``    starts mpirun's daemon on a node, and keeps preemption's signal from it
`commands`      ``python -m mpi_runner slurm …``
==============  =======================================================================================================
"""
