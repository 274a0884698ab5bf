"""The paper's models as Pyro and NumPyro programs, installed as ``gs_ppl.models``."""
