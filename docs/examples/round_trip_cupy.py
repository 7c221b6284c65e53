"""A coded round trip in 30 lines, with CuPy's arrays on a GPU; without one it says what is missing, and ends with 1."""

import sys

from fastgc import kernels

if "cuda" in kernels.missing_backends():
    sys.exit(f"a CUDA device is needed from here on: {kernels.missing_backends()['cuda']}")

import cupy as cp

# Four workers hold four partitions; worker i sends one number for two: block 0 + (i + 1) times block 1 of the sum.
workers, partitions, reduction, length = 4, 4, 2, 10
generator = cp.array([[1.0, i + 1.0] for i in range(workers)])

# Gradient j has the elements ((7 j + 3 x) mod 11 - 3) / 10, in float32.
j, x = cp.arange(partitions)[:, None], cp.arange(length)
gradients = (((7 * j + 3 * x) % 11 - 3) / 10).astype(cp.float32)

# Every gradient is two blocks, and so two rows; each worker has a coefficient for every row. Matrices are the host's.
blocks = gradients.reshape(partitions * reduction, length // reduction)
encoding = cp.asnumpy(cp.tile(generator, (1, partitions)))
messages = kernels.lincomb(encoding, blocks)

# Workers 1 and 2 straggle. The others' rows of the generator are inverted, and applied to their messages.
survivors = cp.array([0, 3])
weights = cp.asnumpy(kernels.decoding_weights(generator, survivors, backend="cuda"))
decoded = kernels.lincomb(weights, messages[survivors]).reshape(length)

for i in range(workers):
    print(f"message {i}:", *(f"{number:.5f}" for number in messages[i].tolist()))
print("weights:", *(f"{number:.5f}" for number in weights.reshape(-1).tolist()))
print("decoded:", *(f"{number:.5f}" for number in decoded.tolist()))
print("sum:", *(f"{number:.5f}" for number in gradients.sum(axis=0).tolist()))
