"""A coded round trip in 30 lines, in code that Numba compiles. It prints what those of other libraries print."""

import numba
import numpy as np

import fastgc.numba as fnb

# Four workers hold four partitions; worker i sends one number for two: block 0 + (i + 1) times block 1 of the sum.
workers, partitions, reduction, length = 4, 4, 2, 10
generator = np.array([[1.0, i + 1.0] for i in range(workers)])

# Gradient j has the elements ((7 j + 3 x) mod 11 - 3) / 10, in float32.
j, x = np.arange(partitions)[:, None], np.arange(length)
gradients = (((7 * j + 3 * x) % 11 - 3) / 10).astype(np.float32)


# Every gradient is two blocks, and so two rows; each worker has a coefficient for every row. Some straggle;
# the others' rows of the generator are inverted, and applied to their messages.
@numba.njit
def round_trip(generator, blocks, encoding, survivors):
    messages = np.empty((len(encoding), blocks.shape[1]), np.float32)
    fnb.lincomb(encoding, blocks, messages)
    weights, _ = fnb.decoding_weights(generator, survivors.reshape(1, -1))
    decoded = np.empty((len(survivors), blocks.shape[1]), np.float32)
    fnb.lincomb(weights[0], messages[survivors], decoded)
    return messages, weights[0], decoded


blocks = gradients.reshape(partitions * reduction, length // reduction)
messages, weights, decoded = round_trip(generator, blocks, np.tile(generator, (1, partitions)), np.array([0, 3]))

for i in range(workers):
    print(f"message {i}:", *(f"{number:.5f}" for number in messages[i].tolist()))
print("weights:", *(f"{number:.5f}" for number in weights.reshape(-1).tolist()))
print("decoded:", *(f"{number:.5f}" for number in decoded.reshape(-1).tolist()))
print("sum:", *(f"{number:.5f}" for number in gradients.sum(axis=0).tolist()))
