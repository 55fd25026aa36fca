"""Files: activations as one table, a row for each prompt and position.

`.npz`, `.safetensors` and `.parquet` hold the same columns, which other programs read as they are:
`prompt` (which one, from zero), `position`, `token_id`, `token`, and one float32 column of vectors
for each site. In safetensors, which holds no text, `token` is a JSON list in the header. What the
table has no place for is in `metadata`, as JSON: every token of each sequence, captured or not,
where it comes from, what interventions did, its reduction, key, request id and usage, the model,
and the version of the client.
"""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from actserve._archives import Arrays, describe, read_archive, unknown_suffix, write_archive
from actserve._checks import described
from actserve._parquet import read_parquet, write_parquet
from actserve.projections import SparseRows
from actserve.readouts import reduction_to_proto
from actserve.results import Activations, InterventionReport, TokenSource, Usage
from actserve.sites import Site

SUFFIXES = (".npz", ".safetensors", ".parquet")
"""The formats, by the suffix of their files."""

_KIND = "activations"
_OF_ROWS = ("prompt", "position", "token_id")
"""Columns that every file has, and that are read; `token` is for other programs."""


def save(
    path: str | PathLike[str],
    activations: Activations | Sequence[Activations],
    *,
    model: str = "",
) -> None:
    """Writes activations of one sequence or of many, all of the same sites, into one file.

    The suffix says how: `.npz`, which numpy reads, `.safetensors` or `.parquet`, which pandas
    reads; the last two need the extra `files`. The module `files` says what is in them. `model`
    is a note for whoever reads the file. Rows and sparse rows are written, with all that tells of
    the tokens and interventions, the reduction, the key, the request id and the usage; predictions,
    attention, named readouts and `kept` are not.

    Raises `ValueError` for another suffix, and where the sites differ.

        acts = client.fetch(texts, ["resid_post.10", "resid_post.20"], positions="last")
        actserve.save("acts.safetensors", acts, model="smollm2-135m")
    """
    path = Path(path)
    many = [activations] if isinstance(activations, Activations) else [*activations]
    if path.suffix not in SUFFIXES:
        raise unknown_suffix(path, SUFFIXES, has_frame=True)
    table, description = columns(many), {"model": model, **_description(many)}
    if path.suffix == ".parquet":
        write_parquet(path, table, describe(_KIND, description))
        return
    texts = {}
    if path.suffix == ".safetensors":
        texts["token"] = json.dumps(table.pop("token").tolist())
    write_archive(path, _KIND, table, description, texts=texts)


def load(path: str | PathLike[str]) -> list[Activations]:
    """The activations of each sequence in a file that `save`, or `actserve fetch --out`, wrote; a
    list, of one where one was written.

    Rows, positions, token ids and tokens are exactly those that were written, whatever the format.
    Nothing in the file is executed or unpickled. Raises `ValueError` for a file that is damaged or
    that something else wrote.

        (acts,) = actserve.load("acts.npz")
    """
    path = Path(path)
    match path.suffix:
        case ".parquet":
            table, description = read_parquet(path, _KIND, _names)
        case suffix if suffix in SUFFIXES:
            table, description = read_archive(path, _KIND, _names)
        case _:
            raise unknown_suffix(path, SUFFIXES)
    try:
        return _activations(table, description)
    # Where JSON has one thing in the place of another, almost anything is raised.
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def columns(many: Sequence[Activations]) -> Arrays:
    """The rows of many sequences as columns of one table, a row for each prompt and position.

    `prompt` (index into `many`), `position` and `token_id` are int64 and `token` is text, all of
    shape [rows]; every site has one float32 column of shape [rows, width]. A site of sparse rows
    has two, `<site>.indices` and `<site>.values`. Raises `ValueError` where the sites differ.
    """
    for index, one in enumerate(many):
        if {*one.sites} != {*many[0].sites} or {*one.sparse} != {*many[0].sparse}:
            raise ValueError(
                f"sequence {index} has rows of {', '.join((*one.sites, *one.sparse)) or 'no site'} "
                f"and the first of {', '.join((*many[0].sites, *many[0].sparse)) or 'no site'}; "
                "a table has rows of the same sites"
            )
    table: Arrays = {
        "prompt": np.repeat(np.arange(len(many)), [len(one.positions) for one in many]),
        "position": _joined([one.positions for one in many]),
        "token_id": _joined([np.array(one.token_ids, np.int64)[one.positions] for one in many]),
        "token": np.array([one.tokens[at] for one in many for at in one.positions], dtype=np.str_),
    }
    for site in many[0].sites if many else ():
        table[site] = _joined([one[site] for one in many])
    for site in many[0].sparse if many else ():
        table[f"{site}.indices"] = _joined([one.sparse[site].indices for one in many])
        table[f"{site}.values"] = _joined([one.sparse[site].values for one in many])
    return table


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _description(many: Sequence[Activations]) -> dict[str, Any]:
    """What the columns do not tell."""
    return {
        "sites": [*many[0].sites] if many else [],
        "sparse": [*many[0].sparse] if many else [],
        "heads": {site: count for one in many for site, count in one.head_counts.items()},
        "sequences": [
            {
                "key": one.key,
                "request_id": one.request_id,
                "reduction": one.reduction,
                "usage": [
                    one.usage.prompt_tokens,
                    one.usage.output_tokens,
                    one.usage.activation_bytes,
                ],
                "token_ids": one.token_ids,
                "tokens": one.tokens,
                "sources": [[s.start, s.end, s.turn, s.role] for s in one.sources],
                "interventions": [
                    [r.rows, r.changed_rows, r.reused_rows, r.mean_relative_change, r.dose_factor]
                    for r in one.interventions
                ],
            }
            for one in many
        ],
    }


def _names(description: dict[str, Any]) -> list[str]:
    """The columns to read of a file."""
    sparse = [f"{site}.{part}" for site in description["sparse"] for part in ("indices", "values")]
    return [*_OF_ROWS, *description["sites"], *sparse]


def _activations(table: Arrays, description: dict[str, Any]) -> list[Activations]:
    sequences, prompts = description["sequences"], table["prompt"]
    sites, sparse = description["sites"], description["sparse"]
    for site in (*sites, *sparse):
        Site.parse(_of(site, str, "a site"))
    for name in _OF_ROWS:
        _check_column(table, name, np.int64, 1)
    for name in (*sites, *(f"{site}.values" for site in sparse)):
        _check_column(table, name, np.float32, 2)
    for name in (f"{site}.indices" for site in sparse):
        _check_column(table, name, np.int64, 2)
    if len(prompts) and not (prompts[0] >= 0 and prompts[-1] < len(sequences)):
        raise ValueError(f"it has rows of prompts that are not among its {len(sequences)}")
    if (np.diff(prompts) < 0).any():
        raise ValueError("its rows are not in the order of their prompts")
    ends = np.searchsorted(prompts, np.arange(len(sequences) + 1))
    heads = {
        Site.parse(_of(site, str, "a site")): _of(count, int, "a count of heads")
        for site, count in description["heads"].items()
    }
    return [
        _one(
            {name: column[start:end] for name, column in table.items()},
            sites,
            sparse,
            heads,
            sequence,
        )
        for sequence, start, end in zip(sequences, ends, ends[1:], strict=False)
    ]


def _check_column(table: Arrays, name: str, dtype: Any, axes: int) -> None:
    column, rows = table[name], len(table["prompt"])
    count = len(column) if column.ndim else 1
    if count != rows or column.dtype != dtype:
        raise ValueError(
            f"column {name} has {count} values of {column.dtype}, not {rows} of "
            f"{np.dtype(dtype).name}"
        )
    if column.ndim != axes:
        kinds = ("numbers", "vectors")
        raise ValueError(f"column {name} is of {kinds[column.ndim > 1]}, not of {kinds[axes > 1]}")


def _one(
    rows: Arrays,
    sites: Sequence[str],
    sparse: Sequence[str],
    heads: dict[Site, int],
    sequence: dict[str, Any],
) -> Activations:
    token_ids = [_of(each, int, "a token id") for each in sequence["token_ids"]]
    tokens = [_of(each, str, "a token") for each in sequence["tokens"]]
    positions = rows["position"]
    if len(token_ids) != len(tokens):
        raise ValueError(f"a sequence has {len(token_ids)} token ids and {len(tokens)} tokens")
    if len(positions) and not (positions.min() >= 0 and positions.max() < len(tokens)):
        raise ValueError(f"a sequence of {len(tokens)} tokens has rows of others")
    if len(sequence["sources"]) > len(tokens):
        raise ValueError(
            f"a sequence has {len(sequence['sources'])} sources of {len(tokens)} tokens"
        )
    return Activations(
        {Site.parse(site): rows[site] for site in sites},
        positions=positions,
        token_ids=token_ids,
        tokens=tokens,
        sources=[_source(*each) for each in sequence["sources"]],
        interventions=[_report(*each) for each in sequence["interventions"]],
        sparse={Site.parse(site): _sparse(rows, site) for site in sparse},
        head_counts=heads,
        reduction=_reduction(sequence.get("reduction")),
        key=_of(sequence.get("key", ""), str, "a key"),
        request_id=_of(sequence.get("request_id", ""), str, "a request id"),
        usage=_usage(sequence.get("usage")),
    )


def _reduction(name: Any) -> str | None:
    reduction_to_proto(name)
    return name


def _usage(counts: Any) -> Usage | None:
    """Usage, which older clients did not write."""
    return None if counts is None else Usage(*(_of(each, int, "a usage") for each in counts))


def _source(start: Any, end: Any, turn: Any, role: Any) -> TokenSource:
    first, last, which = (
        None if each is None else _of(each, int, "a source") for each in (start, end, turn)
    )
    return TokenSource(first, last, which, _of(role, str, "a role"))


def _report(
    rows: Any, changed: Any, reused: Any, mean: Any, factor: Any = None
) -> InterventionReport:
    """Older clients did not write the factor."""
    all_rows, new, old = (_of(each, int, "a count of rows") for each in (rows, changed, reused))
    change = None if mean is None else _of(mean, (int, float), "a relative change")
    dose_factor = None if factor is None else _of(factor, (int, float), "a dose factor")
    return InterventionReport(all_rows, new, old, change, dose_factor)


def _sparse(rows: Arrays, site: str) -> SparseRows:
    indices, values = rows[f"{site}.indices"], rows[f"{site}.values"]
    if indices.shape != values.shape:
        raise ValueError(
            f"the sparse rows of {site} have indices {[*indices.shape]} and values "
            f"{[*values.shape]}"
        )
    return SparseRows(indices, values)


def _of(value: Any, kind: Any, name: str) -> Any:
    """A value, if JSON has one of that kind there; true and false are no numbers."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {described(value)}")
    return value
