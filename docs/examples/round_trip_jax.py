"""The coded round trip of round_trip_numpy.py in JAX, as one compiled program: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np

import fastgc.jax

# Four workers hold four partitions; worker i sends one number for two: block 0 + (i + 1) times block 1 of the sum.
workers, partitions, reduction, length = 4, 4, 2, 10
generator = np.array([[1.0, i + 1.0] for i in range(workers)])

# Gradient j has the elements ((7 j + 3 x) mod 11 - 3) / 10, in float32.
j, x = jnp.arange(partitions)[:, None], jnp.arange(length)
gradients = ((7 * j + 3 * x) % 11 - 3).astype(jnp.float32) / 10


@jax.jit
def round_trip(gradients, survivors):
    # Every gradient is two blocks, and so two rows; each worker has a coefficient for every row.
    blocks = gradients.reshape(partitions * reduction, length // reduction)
    messages = fastgc.jax.lincomb(np.tile(generator, (1, partitions)), blocks)
    # The survivors' rows of the generator are inverted, and applied to their messages.
    weights = fastgc.jax.decoding_weights(generator, survivors)
    return messages, weights, fastgc.jax.lincomb(weights, messages[survivors]).reshape(length)


# Workers 1 and 2 straggle. Who it was is data: other survivors need no new program.
messages, weights, decoded = round_trip(gradients, jnp.array([0, 3]))

for i in range(workers):
    print(f"message {i}:", *(f"{number:.5f}" for number in messages[i].tolist()))
print("weights:", *(f"{number:.5f}" for number in weights.reshape(-1).tolist()))
print("decoded:", *(f"{number:.5f}" for number in decoded.tolist()))
print("sum:", *(f"{number:.5f}" for number in gradients.sum(axis=0).tolist()))
