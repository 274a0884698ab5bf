"""One interface for both sides, so that each parity test is written once."""

from backend_numpyro import NumPyroBackend
from backend_pyro import PyroBackend

BACKENDS = {"pyro": PyroBackend, "numpyro": NumPyroBackend}
