"""A coded round trip in 30 lines. Those of other libraries and languages beside it print the same numbers."""

import numpy as np

from fastgc import kernels

# Four workers hold four partitions; worker i sends one number for two: block 0 + (i + 1) times block 1 of the sum.
workers, partitions, reduction, length = 4, 4, 2, 10
generator = np.array([[1.0, i + 1.0] for i in range(workers)])

# Gradient j has the elements ((7 j + 3 x) mod 11 - 3) / 10, in float32.
j, x = np.arange(partitions)[:, None], np.arange(length)
gradients = (((7 * j + 3 * x) % 11 - 3) / 10).astype(np.float32)

# Every gradient is two blocks, and so two rows; each worker has a coefficient for every row.
blocks = gradients.reshape(partitions * reduction, length // reduction)
encoding = np.tile(generator, (1, partitions))
messages = kernels.lincomb(encoding, blocks)

# Workers 1 and 2 straggle. The others' rows of the generator are inverted, and applied to their messages.
survivors = np.array([0, 3])
weights = kernels.decoding_weights(generator, survivors)
decoded = kernels.lincomb(weights, messages[survivors]).reshape(length)

for i in range(workers):
    print(f"message {i}:", *(f"{number:.5f}" for number in messages[i].tolist()))
print("weights:", *(f"{number:.5f}" for number in weights.reshape(-1).tolist()))
print("decoded:", *(f"{number:.5f}" for number in decoded.tolist()))
print("sum:", *(f"{number:.5f}" for number in gradients.sum(axis=0).tolist()))
