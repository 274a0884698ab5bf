"""Packages that come with an extra."""

import importlib
from types import ModuleType


def require(name: str, extra: str = "compare") -> ModuleType:
    """Imports a package, or says which extra installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'gs-ppl[{extra}]'") from error
