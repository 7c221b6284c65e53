"""Measurements of fastgc against its peers and against the limits of the machine. See bench/README.md."""
