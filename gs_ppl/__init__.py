"""Gumbel-Softmax distributions for Pyro and NumPyro.

Import the side that you use; both have the same names and the same meanings::

    import gs_ppl.pyro as gs      # imports torch and pyro, never jax
    import gs_ppl.numpyro as gs   # imports jax and numpyro, never torch

Importing ``gs_ppl`` itself loads neither, so that either one works with the other absent.
"""

__version__ = "0.2.0"
