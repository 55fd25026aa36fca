"""The reference itself: its rows satisfy the equations of a transformer, in every family."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from actserve_server.domain.operations import Add, Mean
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from tests.integration.families import FAMILIES, VOCABULARY, WINDOW, ModelFamily, make_checkpoint
from tests.integration.reference import Reference, parts_of

TOKEN_IDS = np.random.default_rng(5).integers(2, VOCABULARY, 3 * WINDOW).tolist()
EDITED_LAYER = 1
FIRST_EDITED = WINDOW
"""Position from which on edits are made."""
ATTENTION_INPUTS = (HookPoint.Q, HookPoint.K, HookPoint.V)
OF_ATTENTION = (*ATTENTION_INPUTS, HookPoint.Z, HookPoint.ATTN_OUT)
OF_MLP = (HookPoint.MLP_IN, HookPoint.MLP_ACT, HookPoint.MLP_OUT)

Rows = dict[Site, np.ndarray]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> ModelFamily:
    return request.param


@pytest.fixture(scope="module")
def path(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(family, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def reference(path: Path) -> Reference:
    return Reference(path, torch.float32)


@pytest.fixture(scope="module")
def rows(reference: Reference) -> Rows:
    return reference.rows(TOKEN_IDS)


@pytest.fixture(scope="module")
def layers(reference: Reference) -> range:
    return range(reference.model.config.num_hidden_layers)


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_watching_changes_nothing(path: Path, rows: Rows) -> None:
    plain = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = plain(torch.tensor([TOKEN_IDS])).logits[0].numpy()
    assert np.array_equal(rows[Site(HookPoint.LOGITS)], logits)


def test_every_site_has_a_row_for_every_token(
    family: ModelFamily, rows: Rows, layers: range
) -> None:
    always = {
        Site(hook_point, layer)
        for hook_point in {*HookPoint} - family.unserved
        for layer in ([None] if hook_point in LAYERLESS else layers)
    }
    assert rows.keys() >= always
    # What the server does not have at every layer may be at some.
    assert {site.hook_point for site in rows.keys() - always} <= family.unserved
    assert all(len(values) == len(TOKEN_IDS) for values in rows.values())


def test_the_stream_is_the_embedding_plus_what_every_layer_adds(
    reference: Reference, rows: Rows, layers: range
) -> None:
    stream = rows[Site(HookPoint.EMBEDDING)]
    for layer in layers:
        assert _close(rows[Site(HookPoint.RESID_PRE, layer)], stream)
        stream = stream + rows[Site(HookPoint.ATTN_OUT, layer)]
        if (mid := Site(HookPoint.RESID_MID, layer)) in rows:
            assert _close(rows[mid], stream)
        stream = stream + rows[Site(HookPoint.MLP_OUT, layer)]
        stream = stream * float(getattr(reference.layers[layer], "layer_scalar", 1.0))
        assert _close(rows[Site(HookPoint.RESID_POST, layer)], stream)


def test_z_is_the_softmax_of_queries_times_keys_times_values(
    reference: Reference, rows: Rows, layers: range
) -> None:
    config = reference.model.config
    patterns = reference.patterns(TOKEN_IDS)
    heads = config.num_attention_heads
    for layer, found in zip(_attending(rows, layers), patterns, strict=True):
        q, z = (_by_head(rows[Site(hook, layer)], heads) for hook in (HookPoint.Q, HookPoint.Z))
        key_value_heads = getattr(config, "num_key_value_heads", heads)
        k, v = (
            np.repeat(
                _by_head(rows[Site(hook, layer)], key_value_heads), heads // key_value_heads, axis=0
            )
            for hook in (HookPoint.K, HookPoint.V)
        )
        attention = reference.attention(layer)
        scale = getattr(attention, "scaling", q.shape[-1] ** -0.5)
        scores = q @ k.transpose(0, 2, 1) * scale
        if cap := getattr(config, "attn_logit_softcapping", None):
            scores = cap * np.tanh(scores / cap)
        scores = np.where(_sees(config, layer), scores, -np.inf)
        if (sinks := getattr(attention, "sinks", None)) is not None:
            nothing = np.broadcast_to(sinks.detach().numpy()[:, None, None], scores[..., :1].shape)
            scores = np.concatenate([scores, nothing], axis=-1)
        pattern = _softmax(scores)[..., : len(TOKEN_IDS)]
        assert _close(found, pattern)
        # Some multiply what attention gives before it is projected.
        if not _gates(attention):
            assert _close(z, pattern @ v)


def _attending(rows: Rows, layers: range) -> list[int]:
    """The layers whose attention has patterns; others' is linear."""
    attending = [layer for layer in layers if Site(HookPoint.Q, layer) in rows]
    assert attending
    return attending


def _gates(attention: nn.Module) -> bool:
    """Whether its queries come with as many gates."""
    made = getattr(attention, "q_proj", None)
    read = getattr(attention, "o_proj", None)
    return made is not None and read is not None and made.out_features == 2 * read.in_features


def _by_head(rows: np.ndarray, heads: int) -> np.ndarray:
    """[tokens, heads * width] as [heads, tokens, width]."""
    return rows.reshape(len(rows), heads, -1).transpose(1, 0, 2)


def _sees(config: PreTrainedConfig, layer: int) -> np.ndarray:
    """Which token (row) sees which (column)."""
    distance = np.subtract.outer(np.arange(len(TOKEN_IDS)), np.arange(len(TOKEN_IDS)))
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types and types[layer] == "chunked_attention":
        chunks = np.arange(len(TOKEN_IDS)) // config.attention_chunk_size
        return (distance >= 0) & np.equal.outer(chunks, chunks)
    if window is None or (types and types[layer] == "full_attention"):
        return distance >= 0
    return (distance >= 0) & (distance < window)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_what_the_mlp_adds_is_computed_from_its_input_and_its_activation(
    reference: Reference, rows: Rows, layers: range
) -> None:
    for index in layers:
        layer = reference.layers[index]
        parts = parts_of(layer)
        with torch.no_grad():
            out = parts.mlp_in(torch.from_numpy(rows[Site(HookPoint.MLP_IN, index)])[None])
            out = out[0] if isinstance(out, tuple) else out
            added = out if parts.mlp_out is parts.mlp_in else parts.mlp_out(out)
            added = added * getattr(layer, "residual_multiplier", 1.0)
            assert _close(rows[Site(HookPoint.MLP_OUT, index)], added.squeeze(0).numpy())
            activation = rows.get(Site(HookPoint.MLP_ACT, index))
            if activation is not None:
                assert parts.mlp_act is not None
                made = parts.mlp_act(torch.from_numpy(activation))
                assert _close(made.numpy(), out.squeeze(0).numpy())


def test_logits_are_the_final_norm_times_the_unembedding(reference: Reference, rows: Rows) -> None:
    unembedding = reference.model.get_output_embeddings().weight.detach().numpy()
    logits = rows[Site(HookPoint.LOGITS)]
    config = reference.model.config
    made = rows[Site(HookPoint.FINAL_NORM)] @ unembedding.T
    made = made * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    if cap := getattr(config, "final_logit_softcapping", None):
        made = cap * np.tanh(made / cap)
    assert _close(made, logits)
    last = torch.log_softmax(torch.from_numpy(logits[-1]), -1).numpy()
    assert np.array_equal(reference.logprobs(TOKEN_IDS), last)


def test_an_edit_changes_what_is_downstream_and_nothing_else(
    reference: Reference, rows: Rows
) -> None:
    # Sites are in the order of the pass, but none of these three leads to another.
    beside = {Site(hook_point, EDITED_LAYER) for hook_point in ATTENTION_INPUTS}
    # Nor attention to the MLP, where they are side by side.
    in_attention, in_mlp = (
        {Site(point, EDITED_LAYER) for point in points} for points in (OF_ATTENTION, OF_MLP)
    )
    side_by_side = Site(HookPoint.RESID_MID, EDITED_LAYER) not in rows
    in_order = list(rows)
    for edited in in_order:
        if edited.layer not in (None, EDITED_LAYER):
            continue
        noise = np.random.default_rng(1).normal(size=rows[edited].shape).astype(np.float32)
        noise[:FIRST_EDITED] = 0
        after = reference.rows(TOKEN_IDS, {edited: lambda values, noise=noise: values + noise})
        assert np.array_equal(after[edited], rows[edited] + noise)
        reached = in_order.index(edited)
        for index, site in enumerate(in_order):
            change = np.abs(after[site] - rows[site]).max(-1)
            apart = edited in beside and site in beside - {edited}
            apart |= side_by_side and edited in in_attention and site in in_mlp
            if index < reached or apart:
                assert not change.any(), f"{edited} changes {site}"
            else:
                assert change[:FIRST_EDITED].max() < 1e-4, f"{edited} changes earlier {site}"
                assert change[FIRST_EDITED:].max() > 1e-2, f"{edited} does not change {site}"


def test_edits_of_several_sites_follow_each_other(
    family: ModelFamily, reference: Reference, rows: Rows
) -> None:
    if HookPoint.RESID_MID in family.unserved:
        pytest.skip("there is no stream between attention and MLP")
    attn_out, resid_mid, resid_post, resid_pre = (
        Site(HookPoint.ATTN_OUT, EDITED_LAYER),
        Site(HookPoint.RESID_MID, EDITED_LAYER),
        Site(HookPoint.RESID_POST, EDITED_LAYER),
        Site(HookPoint.RESID_PRE, EDITED_LAYER + 1),
    )
    after = reference.rows(
        TOKEN_IDS,
        {
            attn_out: np.zeros_like,
            resid_mid: lambda values: 2 * values,
            resid_post: lambda values: values + 1,
            resid_pre: lambda values: -values,
        },
    )
    before = rows[Site(HookPoint.RESID_PRE, EDITED_LAYER)]
    assert np.array_equal(after[resid_mid], 2 * before)
    mlp_out = after[Site(HookPoint.MLP_OUT, EDITED_LAYER)]
    scale = np.float32(getattr(reference.layers[EDITED_LAYER], "layer_scalar", 1.0))
    assert np.array_equal(after[resid_post], (2 * before + mlp_out) * scale + 1)
    assert np.array_equal(after[resid_pre], -after[resid_post])


def test_edited_keys_change_who_attends_to_whom(
    reference: Reference, rows: Rows, layers: range
) -> None:
    keys = Site(HookPoint.K, EDITED_LAYER)
    patterns = reference.patterns(TOKEN_IDS, {keys: np.zeros_like})
    pattern = patterns[_attending(rows, layers).index(EDITED_LAYER)]
    # Keys of zero leave every token that is seen alike, whatever goes to none.
    seen = pattern > 0
    assert _close(pattern / pattern.sum(-1, keepdims=True), seen / seen.sum(-1, keepdims=True))


def test_interventions_apply_in_order_to_their_positions_and_heads(
    reference: Reference, rows: Rows
) -> None:
    site = Site(HookPoint.K, EDITED_LAYER)
    heads = reference.heads(HookPoint.K)
    expected = rows[site].copy()
    expected[3:5] += 1
    by_head = expected.reshape(len(expected), heads, -1)
    vector = np.linspace(-1, 1, by_head.shape[-1], dtype=np.float32)
    by_head[4, 1] = vector

    spans = Spans(((3, 5),))
    add = Add(np.ones(expected.shape[-1], np.float32))
    interventions = [
        Intervention((site,), Selection(spans), add),
        Intervention(
            (site,), Selection(spans, frozenset([TOKEN_IDS[4]])), Mean(vector), heads=(1,)
        ),
    ]
    after = reference.rows(TOKEN_IDS, reference.edits(interventions, TOKEN_IDS))
    assert np.array_equal(after[site], expected)


def test_only_the_sites_asked_for_are_kept(reference: Reference, rows: Rows) -> None:
    site = Site(HookPoint.V, EDITED_LAYER)
    kept = reference.rows(TOKEN_IDS, sites=[site])
    assert kept.keys() == {site}
    assert np.array_equal(kept[site], rows[site])


def test_an_edit_of_a_site_that_the_model_lacks_is_refused(
    reference: Reference, layers: range
) -> None:
    missing = Site(HookPoint.RESID_POST, len(layers))
    with pytest.raises(ValueError, match=str(missing)):
        reference.rows(TOKEN_IDS, {missing: np.zeros_like})
