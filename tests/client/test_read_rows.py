"""The shapes in which rows can be had: by layer, by head, and as torch tensors."""

from typing import Any

import numpy as np
import pytest

import actserve
from actserve.projections import SparseRows
from actserve.read_rows import ReadRows
from actserve.sites import Site


def read(*sites: str, widths: tuple[int, ...] = (), **options: Any) -> ReadRows:
    """Rows of two tokens, of which each has the number of its site everywhere."""
    rows = {
        Site.parse(site): np.full((2, widths[index] if widths else 4), index, np.float32)
        for index, site in enumerate(sites)
    }
    return ReadRows(rows, positions=np.arange(2), **options)


@pytest.mark.parametrize(
    ("sites", "layers", "order"),
    [
        (["resid_post.10", "embedding", "resid_post.2"], (2, 10), [2, 0]),
        (["blocks.3.hook_resid_post", "resid_pre.1"], (3,), [0]),
        (["resid_post.-1", "resid_post.-12", "resid_post.-2"], (-12, -2, -1), [1, 2, 0]),
    ],
)
def test_a_stack_has_every_layer_from_the_first_of_the_model_to_the_last(
    sites: list[str], layers: tuple[int, ...], order: list[int]
) -> None:
    rows = read(*sites)
    assert rows.layers("resid_post") == layers
    stack = rows.stack("resid_post")
    assert (stack.shape, stack.dtype) == ((len(layers), 2, 4), np.float32)
    assert stack[:, 0, 0].tolist() == order


@pytest.mark.parametrize(
    ("sites", "hook_point", "error", "message"),
    [
        (["resid_post.1"], "resid_mid", KeyError, "no rows of resid_mid .* asked: resid_post.1"),
        ([], "resid_mid", KeyError, "asked: none; name the sites you want"),
        (["resid_post.1"], "resid_post.1", KeyError, "not a hook point; .* without a layer"),
        (["final_norm"], "final_norm", ValueError, r"has no layers; its rows are \['final_norm'\]"),
        (["z.0", "z.-1"], "z", ValueError, r"layers \[-1, 0\], .* ask for all of them one way"),
    ],
)
@pytest.mark.parametrize("method", ["layers", "stack"])
def test_what_has_no_order_of_layers_is_refused(
    sites: list[str], hook_point: str, error: type[Exception], message: str, method: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(read(*sites), method)(hook_point)


def test_layers_of_several_widths_make_no_stack() -> None:
    rows = read("z.0", "z.1", widths=(4, 6))
    with pytest.raises(ValueError, match=r"\[4, 6\] wide at different layers"):
        rows.stack("z")


def test_sparse_rows_make_no_stack() -> None:
    sparse = SparseRows(np.zeros((2, 1), np.int64), np.ones((2, 1), np.float32))
    rows = ReadRows({}, positions=np.arange(2), sparse={Site.parse("z.3"): sparse})
    assert rows.layers("z") == (3,)
    with pytest.raises(KeyError, match=r"largest components; see \.sparse"):
        rows.stack("z")


def test_a_stack_is_a_copy() -> None:
    rows = read("z.0")
    rows.stack("z")[:] = 9
    assert not rows["z.0"].any()


@pytest.mark.parametrize("hook_point", ["q", "k", "v", "z"])
def test_heads_are_told_by_the_server(client: Any, hook_point: str) -> None:
    acts = client.fetch("a b c", [f"{hook_point}.1", "embedding"])
    heads = acts.heads(f"{hook_point}.1")
    assert heads.shape == (3, 2, 2)
    np.testing.assert_array_equal(heads.reshape(3, 4), acts[f"{hook_point}.1"])
    assert np.shares_memory(heads, acts[f"{hook_point}.1"])
    assert dict(acts.head_counts) == {f"{hook_point}.1": 2, "embedding": 0}
    with pytest.raises(ValueError, match="embedding have no heads; q, k, v and z do"):
        acts.heads("embedding")
    with pytest.raises(ValueError, match="have 2 heads, not 4"):
        acts.heads(f"{hook_point}.1", 4)


def test_named_and_generated_rows_have_heads_too(client: Any) -> None:
    out = client.generate("a b", sites="z.0", readouts={"more": actserve.Read("q.0", "last")})
    assert out.activations.heads("z.0").shape[1:] == (2, 2)
    assert out.activations.readouts["more"].heads("q.0").shape == (1, 2, 2)


def test_projected_rows_have_no_heads(client: Any) -> None:
    acts = client.fetch("a b", "z.0", projection=actserve.Projection(np.eye(4)))
    with pytest.raises(ValueError, match="no heads"):
        acts.heads("z.0")


def test_an_older_server_leaves_the_heads_to_be_counted() -> None:
    rows = read("z.0")
    assert rows.heads("z.0", 2).shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"did not say .* as in heads\('z.0', 9\)"):
        rows.heads("z.0")
    for count in (3, 0, -2):
        with pytest.raises(ValueError, match=f"4 wide, which is not {count} heads"):
            rows.heads("z.0", count)
