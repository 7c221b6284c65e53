"""The coded round trip of round_trip_numpy.py in PyTorch; with `kernels` for what is done once per set of survivors."""

import torch

from fastgc import kernels
from fastgc.torch import lincomb

# Four workers hold four partitions; worker i sends one number for two: block 0 + (i + 1) times block 1 of the sum.
workers, partitions, reduction, length = 4, 4, 2, 10
generator = torch.tensor([[1.0, i + 1.0] for i in range(workers)], dtype=torch.float64)

# Gradient j has the elements ((7 j + 3 x) mod 11 - 3) / 10, in float32.
j, x = torch.arange(partitions)[:, None], torch.arange(length)
gradients = (((7 * j + 3 * x) % 11 - 3).double() / 10).float()

# Every gradient is two blocks, and so two rows; each worker has a coefficient for every row.
blocks = gradients.reshape(partitions * reduction, length // reduction)
encoding = generator.tile(1, partitions)
messages = lincomb(encoding, blocks)

# Workers 1 and 2 straggle. The others' rows of the generator are inverted, and applied to their messages.
survivors = torch.tensor([0, 3])
weights = torch.from_numpy(kernels.decoding_weights(generator.numpy(), survivors.numpy()))
decoded = lincomb(weights, messages[survivors]).reshape(length)

for i in range(workers):
    print(f"message {i}:", *(f"{number:.5f}" for number in messages[i].tolist()))
print("weights:", *(f"{number:.5f}" for number in weights.reshape(-1).tolist()))
print("decoded:", *(f"{number:.5f}" for number in decoded.tolist()))
print("sum:", *(f"{number:.5f}" for number in gradients.sum(dim=0).tolist()))
