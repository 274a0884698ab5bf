"""Builds the site: `make docs`."""

import inspect
import re
from pathlib import Path

import gs_ppl
import gs_ppl.numpyro
import gs_ppl.pyro

project = "gs_ppl"
author = "The gs_ppl authors"
copyright = author
version = release = gs_ppl.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "myst_nb",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"gs_ppl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Pages that hold code are executed once; a change of the page executes it again.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build" / "jupyter_cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "remove"  # progress bars, and their complaint that there is no widget
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = False
autodoc_inherit_docstrings = False  # the methods that the PPL describes are in its reference
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Args say it
autodoc_default_options = {"members": True, "show-inheritance": False}
toc_object_entries_show_parents = "hide"
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes", "Source"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def kind(module: object, name: str) -> str:
    """Under which heading of the reference a public name stands."""
    value = getattr(module, name)
    if inspect.ismodule(value):
        return "Modules"
    if not inspect.isclass(value):
        return "Functions and handlers"
    if name.endswith("_ELBO"):
        return "Estimators of the gradient"
    if hasattr(value, "log_prob"):
        return "Distributions"
    return "Guides, training, reparameterization"


def write_reference() -> None:
    """One page a side, from its public list: what is public is on it."""
    for side, shown in (("pyro", "Pyro"), ("numpyro", "NumPyro")):
        module = getattr(gs_ppl, side)
        lines = [f"# {shown}: `gs_ppl.{side}`", "", f"    import gs_ppl.{side} as gs", ""]
        headings: dict[str, list[str]] = {}
        for name in module.__all__:
            headings.setdefault(kind(module, name), []).append(name)
        for heading in sorted(headings):
            names = "\n".join(sorted(headings[heading], key=str.lower))
            lines += [f"## {heading}", "", "```{eval-rst}", f".. currentmodule:: gs_ppl.{side}", ""]
            lines += [".. autosummary::", "   :toctree: api", "   :nosignatures:", ""]
            lines += [f"   {name}" for name in names.splitlines()]
            lines += ["```", ""]
        page = Path(__file__).parent / "reference" / f"{side}_side.md"
        text = "\n".join(lines)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


write_reference()  # before Sphinx looks for pages


def escape_formulas(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Docstrings write |a|, x**2 and noise_ as they are; reStructuredText reads marks in them."""
    in_example = False
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        if not in_example:
            parts = line.split("`")
            parts[::2] = [
                re.sub(r"\||\*(?=\*)|(?<=\*)\*|(?<=\w)_(?!\w)", r"\\\g<0>", part)
                for part in parts[::2]
            ]
            lines[i] = "`".join(parts)


def open_sections(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """`Source: a line` becomes a section of its own, which napoleon wants on lines of its own."""
    opened, inside = [], False
    for line in lines:
        heading = re.match(r"(Shapes|Source): (.+)", line)
        inside = bool(heading) or (inside and bool(line.strip()))
        if heading:
            opened += [f"{heading[1]}:", f"    {heading[2]}"]
        else:
            opened.append(f"    {line}" if inside else line)
    lines[:] = opened


def setup(app: object) -> None:
    app.connect("autodoc-process-docstring", open_sections, priority=90)
    app.connect("autodoc-process-docstring", escape_formulas, priority=100)  # napoleon's is 500
