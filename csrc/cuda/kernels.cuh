// All kernels: what is compiled, on a device and for the host.
#pragma once

#include "decoding_weights.cuh"
#include "lincomb.cuh"
