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
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gs_ppl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Pages that contain code are executed once, and again if the page changes.
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build" / "jupyter_cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # for a cell, in wall-clock time on a machine with other load
nb_output_stderr = "remove"  # progress bars, and their warning that there is no widget
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # methods that the PPL documents are in its own reference
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Args have the types
autodoc_default_options = {"members": True}
toc_object_entries = False  # the headings are the names
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes", "Source"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# The reference has one page for each topic: title, introduction, modules. A name is on the page of
# the module that defines it. A module that is in no topic gets a separate page.
TOPICS = {
    "distributions": (
        "Distributions",
        "The laws, soft and hard. [Which one](../../explanations/density_or_mass.md) is a choice of"
        " sample and of score.",
        ["distributions"],
    ),
    "straight_through": (
        "Straight-through families",
        "One-hot samples, in law categorical, each with another gradient."
        " [Bias and variance](../../explanations/estimators.md) compares them.",
        ["straight_through"],
    ),
    "handlers": (
        "Handlers and checks",
        "Relax a program, make it discrete again, enumerate it, and check that guide and model"
        " fit.",
        ["handlers", "selection", "enumeration", "checks", "reparam"],
    ),
    "guides": (
        "Guides",
        "Automatic guides over discrete latents, alone or beside continuous ones, and the classes"
        " of rows that a guide has not seen.",
        ["autoguide", "assignment"],
    ),
    "training": (
        "Training",
        "SVI at an annealed temperature, and where it starts."
        " [Schedules and what a run returns](../shared.md) are the same on both sides.",
        ["svi", "annealing", "starting"],
    ),
    "estimators": (
        "ELBOs",
        "ELBOs whose gradient comes from the discrete program itself.",
        ["score_function", "substitution", "trace_enum"],
    ),
    "comparison": (
        "Comparison and ArviZ",
        "A relaxed program beside its exact enumeration, and draws for ArviZ.",
        ["comparison", "inference_data"],
    ),
}
SIDES = {"pyro": "Pyro", "numpyro": "NumPyro"}
FIRST = {"GumbelSoftmax", "STGumbelSoftmax", "relax", "AutoGumbelSoftmax", "AnnealedSVI", "compare"}


def tabs(bodies: dict[str, list[str]]) -> list[str]:
    """One tab for each side; a click changes all tabs of the page, and of the next ones."""
    lines = ["::::{tab-set}", ":sync-group: ppl", ""]
    for side, body in bodies.items():
        lines += [f":::{{tab-item}} {SIDES[side]}", f":sync: {side}", "", "```{eval-rst}"]
        lines += [*body, "```", ":::", ""]
    return [*lines, "::::", ""]


def entry(name: str) -> list[str]:
    """The entry of a public name, with a tab for each side."""
    bodies = {}
    for side in SIDES:
        what = "class" if inspect.isclass(getattr(getattr(gs_ppl, side), name)) else "function"
        bodies[side] = [f".. auto{what}:: gs_ppl.{side}.{name}"]
    return [f"## {name}", "", *tabs(bodies)]


def write(page: str, lines: list[str]) -> None:
    path = Path(__file__).parent / "reference" / "api" / f"{page}.md"
    path.parent.mkdir(exist_ok=True)
    text = "\n".join(lines)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_reference() -> None:
    """Writes the pages from `__all__` of both sides, which must be equal."""
    assert gs_ppl.pyro.__all__ == gs_ppl.numpyro.__all__
    by_module: dict[str, list[str]] = {}
    for name in gs_ppl.pyro.__all__:
        value = getattr(gs_ppl.pyro, name)
        if inspect.ismodule(value):
            what = [f".. automodule:: gs_ppl.{{side}}.{name}"]
            bodies = {side: [line.format(side=side) for line in what] for side in SIDES}
            write(name, [f"# `{name}`", "", *tabs(bodies)])
        else:
            by_module.setdefault(value.__module__.rpartition(".")[2], []).append(name)
    listed = {module for _, _, modules in TOPICS.values() for module in modules}
    alone = {module: (f"`{module}`", "", [module]) for module in by_module if module not in listed}
    for page, (title, intro, modules) in {**TOPICS, **alone}.items():
        names = [name for m in modules for name in by_module[m]]
        names.sort(key=lambda name: (name not in FIRST, name.lower()))
        entries = (line for name in names for line in entry(name))
        write(page, [f"# {title}", "", intro, "", *entries])


write_reference()  # before Sphinx searches for pages


def escape_formulas(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Escapes |a|, x**2 and noise_ in docstrings, which reStructuredText would read as markup."""
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
    """Puts the text of `Source: text` on a new line, as napoleon needs it for a section."""
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
