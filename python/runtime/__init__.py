"""A large-language-model runtime: models in Python, kernels in Triton, the scheduler in C++."""

from runtime._core import __version__

__all__ = ["__version__"]
