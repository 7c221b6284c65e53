"""A cluster on EC2, by AWS ParallelCluster 3.

==================  ===================================================================================================
file                what it is
==================  ===================================================================================================
`cluster`           what may be asked for, checked, and put into the templates
``cluster.yaml``    the template of ParallelCluster's configuration
``bootstrap.sh``    what the head node does when it starts: it installs the runner
``policy.json``     the template of the rights that creating, using and deleting such a cluster takes
`commands`          ``python -m mpi_runner ec2 …``
==================  ===================================================================================================
"""
