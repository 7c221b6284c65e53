"""A cluster on one machine: hosts made of Linux namespaces, joined by links of limited bandwidth.

==========  ===========================================================================================================
module      what it knows
==========  ===========================================================================================================
`profiles`  what kinds of machines there are: bandwidth, cores, speed, straggling
`shares`    limiting the cores of a host, by cgroup
`hosts`     making hosts, running a command on them, taking them down
`links`     what joins them: a bridge, a pair of interfaces a host, and their limits
`running`   finding the hosts of clusters that are up, and what dead ones left
`faults`    cutting and throttling links, losing hosts: now or at a given second
`commands`  ``python -m mpi_runner cluster …``
==========  ===========================================================================================================
"""
