"""One interface over both sides, so that every parity test is written once."""

from backend_numpyro import NumPyroBackend
from backend_pyro import PyroBackend

BACKENDS = {"pyro": PyroBackend, "numpyro": NumPyroBackend}
