"""fastgc for PyTorch: the kernels as an operator, and encoding and decoding of a model's gradients.

Importing this module imports PyTorch; `import fastgc` does not.
"""

from __future__ import annotations

from fastgc.torch._gradients import Decoded, GradientDecoder, GradientEncoder
from fastgc.torch._lincomb import lincomb

__all__ = ["Decoded", "GradientDecoder", "GradientEncoder", "lincomb"]
