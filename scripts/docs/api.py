"""The reference of the Python client: which public name is on which page.

Every name of `actserve.__all__` is on one, found by the module that defines it, so a new module's
names are on the last page until it is listed here. mkdocstrings writes them from the docstrings;
nothing is imported.
"""

from dataclasses import dataclass
from pathlib import Path

import griffe

CLIENT = Path(__file__).resolve().parents[2] / "client/python"


@dataclass(frozen=True)
class Page:
    """A page of the reference."""

    name: str
    title: str
    about: str
    modules: tuple[str, ...]
    """Those whose names are here, without `actserve.`; subpackages count as their parents."""


_LAST = Page(
    "more",
    "Everything else",
    "Weights, element types, and what belongs to several pages.",
    (),
)
PAGES = (
    Page(
        "clients",
        "Clients",
        "One client for a server, in two forms: `Client` blocks, `AsyncClient` is the same with "
        "`await`. A default written `...` is what holds where the argument is left out, as its "
        "description says.",
        ("_sync", "_async"),
    ),
    Page(
        "prompts",
        "Prompts, sites and positions",
        "What is run, where it is read or changed, and at which tokens: the guides on "
        "[conversations](../../conversations.md), [sites](../../sites.md) and "
        "[positions](../../positions.md).",
        ("prompts", "conversations", "sites", "positions", "tokens"),
    ),
    Page(
        "readouts",
        "Readouts",
        "What to read: the guide on [readouts](../../readouts.md) has formulas and examples.",
        (
            "readouts",
            "projections",
            "saelens",
            "predictions",
            "attention",
            "attributions",
            "kept",
            "means",
        ),
    ),
    Page(
        "interventions",
        "Interventions",
        "What to change: the guide on [interventions](../../interventions.md) has formulas and "
        "examples.",
        ("interventions", "steering_vectors", "edits"),
    ),
    Page(
        "vectors",
        "Stored vectors",
        "What a server stores by name: the guide on [stored vectors](../../vectors.md).",
        ("stored_vectors", "vector_files"),
    ),
    Page(
        "dictionaries",
        "Dictionaries and features",
        "Sparse autoencoders and transcoders, and what they make of prompts: the guide on "
        "[features](../../features.md).",
        (
            "dictionaries",
            "dictionary_matrices",
            "features",
            "feature_index",
            "dashboards",
            "looks",
        ),
    ),
    Page(
        "generation",
        "Sampling and events",
        "How tokens are chosen, and what a stream tells while they are: the guide on "
        "[sampling](../../sampling.md).",
        ("sampling", "events"),
    ),
    Page(
        "explanations",
        "Explanations",
        "Activations in words and back: the guide on [explanations](../../explanations.md).",
        ("explaining", "explanations", "nlas"),
    ),
    Page(
        "results",
        "Results",
        "What the methods of a client return. Every array is float32.",
        ("results", "read_rows", "files", "frames"),
    ),
    Page(
        "studies",
        "Studies",
        "What `logit_lens`, `attention`, `patch`, `score` and `compare` return: numbers that know "
        "how to be shown.",
        ("studies",),
    ),
    Page(
        "sweeps",
        "Sweeps",
        "Many prompts under many interventions: the guide on [sweeps](../../sweeps.md).",
        ("sweeps", "probes"),
    ),
    Page(
        "graphs",
        "Attribution graphs",
        "What a prediction comes from: the guide on [attribution graphs](../../graphs.md).",
        ("graphs",),
    ),
    Page(
        "models",
        "Models",
        "What a server says of the model that it serves.",
        ("models",),
    ),
    Page(
        "errors",
        "Exceptions",
        "One class for each thing that a caller can do about it. [Error reasons](../reasons.md) "
        "lists what `reason` may be.",
        ("errors",),
    ),
    _LAST,
)


def names_by_page() -> dict[Page, list[griffe.Object | griffe.Alias]]:
    """The public names of the client on their pages, in the order in which they are defined."""
    package = griffe.load("actserve", search_paths=[CLIENT], allow_inspection=False)
    homes = {module: page for page in PAGES for module in page.modules}
    public = [package[str(name)] for name in package.exports or ()]

    def order(name: griffe.Object | griffe.Alias) -> tuple[int, str, int]:
        listed = homes.get(_module(name), _LAST).modules
        place = listed.index(_module(name)) if _module(name) in listed else 0
        return place, _module(name), name.lineno or 0

    found: dict[Page, list[griffe.Object | griffe.Alias]] = {page: [] for page in PAGES}
    for name in sorted(public, key=order):
        found[homes.get(_module(name), _LAST)].append(name)
    return found


def pages() -> dict[str, str]:
    """The text of each page by its name, with a directive of mkdocstrings for each public name."""
    found = names_by_page()
    public = {each.canonical_path for names in found.values() for each in names}
    return {
        page.name: f"# {page.title}\n\n{page.about}\n\n"
        + "\n".join(_directive(each, public) for each in names)
        for page, names in found.items()
    }


def _module(name: griffe.Object | griffe.Alias) -> str:
    return name.canonical_path.split(".")[1]


def _directive(name: griffe.Object | griffe.Alias, public: set[str]) -> str:
    text = f"::: actserve.{name.name}\n"
    if inherited := _inherited(name, public):
        # Named in order, as mkdocstrings would else show what is inherited first.
        own = [each for each in name.members if not each.startswith("_")]
        text += f"    options:\n      inherited_members: true\n      members: {own + inherited}\n"
    return text


def _inherited(name: griffe.Object | griffe.Alias, public: set[str]) -> list[str]:
    """The members that a class has from a class of the client which no page shows, those of the
    nearest class first."""
    target = name.final_target if isinstance(name, griffe.Alias) else name
    if not isinstance(target, griffe.Class):
        return []
    nearest = [each.canonical_path for each in target.mro()]
    members = [
        member
        for member in name.inherited_members.values()
        if not member.name.startswith("_")
        and not any(member.canonical_path.startswith(f"{path}.") for path in public)
    ]
    members.sort(key=lambda member: nearest.index(member.canonical_path.rpartition(".")[0]))
    return [member.name for member in members]
