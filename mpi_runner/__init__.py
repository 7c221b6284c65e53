"""Distributed training with coded gradients over MPI: one master, N workers, nobody waits for a straggler."""
