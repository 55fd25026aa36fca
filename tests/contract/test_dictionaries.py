"""Dictionaries: uploaded in chunks, found by whoever uploaded them, and used by name wherever rows
are read. Each promise about what is stored is held in both databases."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import source_pb2, tensor_pb2
from actserve_server.dictionaries import stored_dictionaries, uploads
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.storage.tables import dictionary_labels, dictionary_pieces
from tests.contract.dictionaries import FEATURES, Sent, chunk, full, matrices, numbers, uploaded
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    failure,
    fetch,
    intervention,
    serving,
    site,
    write_tokens,
)
from tests.contract.harness import matrices as read_matrices
from tests.contract.refusals import INVALID, WIDTH, engine

NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def served(store: dict[str, str]) -> AsyncIterator[Served]:
    """A server that lets everybody upload, and stores in an empty database."""
    async with serving(FakeEngine(), max_dictionary_bytes=1 << 20, **store) as running:
        yield running


async def get(served: Served, name: str = "signs", **options: Any) -> pb.Dictionary:
    request = pb.GetDictionaryRequest(name=full(name))
    return (await served.dictionaries.GetDictionary(request, **options)).dictionary


async def names(served: Served, **fields: Any) -> list[str]:
    request = pb.ListDictionariesRequest(**fields)
    page = await served.dictionaries.ListDictionaries(request)
    return [each.name.rpartition("/")[2] for each in page.dictionaries]


async def rows(served: Served, **readout: Any) -> np.ndarray:
    """The rows of a layer of a prompt, or what is made of them."""
    request = fetch("hello world", capture={"sites": [site(1)], **readout})
    ((_, values),) = read_matrices(
        await collect(served.generation.FetchActivations(request))
    ).values()
    return values


async def test_what_was_uploaded_is_told(served: Served) -> None:
    made = await uploaded(served)
    assert made.name == full("signs")
    assert made == await get(served)
    assert made.kind == pb.DICTIONARY_KIND_SPARSE_AUTOENCODER
    assert (made.site.layer, made.features) == (1, FEATURES)
    assert made.WhichOneof("activation") == "jump_relu"
    assert made.size_bytes == sum(map(len, Sent().content))
    assert not made.of_server
    # Made-up rows are explained by nothing; it is told, and what the caller does is its affair.
    assert made.check.tokens > 0
    assert made.check.explained < 0.5
    assert 0 < made.check.active_features < FEATURES


async def test_its_features_are_those_of_the_formula(served: Served) -> None:
    await uploaded(served)
    wanted = Sent().encoded(await rows(served))
    assert wanted.any()
    features = await rows(served, projection={"dictionary": full("signs")})
    np.testing.assert_allclose(features, wanted, rtol=1e-5, atol=1e-5)


async def test_the_top_features_come_with_their_indices(served: Served) -> None:
    await uploaded(served)
    wanted = Sent().encoded(await rows(served))
    request = fetch(
        "hello world",
        capture={"sites": [site(1)], "projection": {"dictionary": full("signs"), "send_top": 3}},
    )
    events = await collect(served.generation.FetchActivations(request))
    chunks = [e.activations for e in events if e.WhichOneof("event") == "activations"]
    indices = np.concatenate([np.array(c.indices).reshape(-1, 3) for c in chunks])
    np.testing.assert_array_equal(indices, np.argsort(-wanted, axis=1, kind="stable")[:, :3])


DIRECTIONS = [
    ({"side": source_pb2.DICTIONARY_SIDE_ENCODER}, lambda: matrices()["encoder"]),
    ({"side": source_pb2.DICTIONARY_SIDE_DECODER}, lambda: matrices()["decoder"]),
    (
        {"side": source_pb2.DICTIONARY_SIDE_DECODER, "features": [7, 2]},
        lambda: matrices()["decoder"][[7, 2]],
    ),
]


@pytest.mark.parametrize(("fields", "directions"), DIRECTIONS)
async def test_its_directions_stand_where_a_matrix_does(
    served: Served, fields: dict[str, Any], directions: Any
) -> None:
    await uploaded(served)
    source = {"dictionary": {"dictionary": full("signs"), **fields}}
    components = await rows(served, projection={"directions": source})
    np.testing.assert_allclose(
        components, await rows(served) @ directions().T, rtol=1e-4, atol=1e-4
    )


async def test_what_a_feature_writes_stands_where_a_vector_does(served: Served) -> None:
    await uploaded(served)
    plain = await rows(served)
    feature = {"feature": {"dictionary": full("signs"), "index": 5}}
    request = fetch(
        "hello world",
        capture={"sites": [site(1)]},
        interventions=[intervention(site(1), add={"vector": feature, "coefficient": 2})],
    )
    ((_, steered),) = read_matrices(
        await collect(served.generation.FetchActivations(request))
    ).values()
    np.testing.assert_allclose(
        steered - plain, np.broadcast_to(2 * matrices()["decoder"][5], plain.shape), atol=1e-5
    )


async def test_bf16_is_taken_as_it_is(served: Served) -> None:
    sent = Sent()
    encoder = (sent.parts["encoder"].view(np.uint32) & 0xFFFF0000).view(np.float32)
    sent = Sent(matrices(encoder=encoder))
    request = sent.request
    request.matrices[0].element_type = tensor_pb2.ELEMENT_TYPE_BF16
    begun = await served.dictionaries.BeginUpload(request)
    content = [(encoder.view(np.uint32) >> 16).astype("<u2").tobytes(), *sent.content[1:]]
    for index, part in enumerate(content):
        await served.dictionaries.UploadChunk(chunk(begun.upload, index, 0, part))
    await served.dictionaries.FinishUpload(pb.FinishUploadRequest(upload=begun.upload))
    features = await rows(served, projection={"dictionary": full("signs")})
    np.testing.assert_allclose(features, sent.encoded(await rows(served)), rtol=1e-5, atol=1e-5)


async def test_an_upload_goes_on_where_it_was_cut(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces smaller than chunks, and neither a multiple of the other.
    for module in (uploads, stored_dictionaries):
        monkeypatch.setattr(module, "PIECE_BYTES", 100)
    sent = Sent()
    request, content = sent.request, sent.content
    begun = await served.dictionaries.BeginUpload(request)
    assert list(begun.received_bytes) == [0] * len(content)
    first = content[0]
    written = await served.dictionaries.UploadChunk(chunk(begun.upload, 0, 0, first[:333]))
    assert written.received_bytes == 333
    again = await served.dictionaries.BeginUpload(request)
    assert again.upload == begun.upload
    assert again.received_bytes[0] == 333
    # Sent again, from before where it ended.
    await served.dictionaries.UploadChunk(chunk(begun.upload, 0, 250, first[250:700]))
    await served.dictionaries.UploadChunk(chunk(begun.upload, 0, 0, first[:10]))
    await served.dictionaries.UploadChunk(chunk(begun.upload, 0, 700, first[700:]))
    for index, part in enumerate(content[1:], 1):
        await served.dictionaries.UploadChunk(chunk(begun.upload, index, 0, part))
    finish = pb.FinishUploadRequest(upload=begun.upload)
    made = (await served.dictionaries.FinishUpload(finish)).dictionary
    assert (await served.dictionaries.FinishUpload(finish)).dictionary == made
    features = await rows(served, projection={"dictionary": full("signs")})
    np.testing.assert_allclose(features, sent.encoded(await rows(served)), rtol=1e-5, atol=1e-5)
    late = await failure(served.dictionaries.UploadChunk(chunk(begun.upload, 0, 0, b"1234")))
    assert (late.code, late.reason) == (NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_it_is_not_there_before_it_is_finished(served: Served) -> None:
    begun = await served.dictionaries.BeginUpload(Sent().request)
    assert (
        await failure(
            served.dictionaries.GetDictionary(pb.GetDictionaryRequest(name=full("signs")))
        )
    ).code is NOT_FOUND
    assert await names(served) == []
    unfinished = await failure(
        served.dictionaries.FinishUpload(pb.FinishUploadRequest(upload=begun.upload))
    )
    assert unfinished.reason == "UPLOAD_INCOMPLETE"
    assert unfinished.details["ErrorInfo"].metadata["matrix_index"] == "0"


async def test_an_upload_that_is_left_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_dictionaries, "EXPIRE_S", 0)
    sent = Sent()
    request = sent.request
    begun = await served.dictionaries.BeginUpload(request)
    gone = await failure(
        served.dictionaries.UploadChunk(chunk(begun.upload, 0, 0, sent.content[0]))
    )
    assert gone.reason == "RESOURCE_NOT_FOUND"
    monkeypatch.undo()
    # Its name and its room are free again, and so is its request id.
    assert (await served.dictionaries.BeginUpload(request)).upload != begun.upload


async def test_it_is_deleted_with_its_matrices_and_labels(served: Served) -> None:
    await uploaded(served)
    await label(served, {1: "ducks"})
    etag = (await get(served)).etag
    stale = pb.DeleteDictionaryRequest(name=full("signs"), etag="other")
    assert (await failure(served.dictionaries.DeleteDictionary(stale))).reason == "ETAG_MISMATCH"
    await served.dictionaries.DeleteDictionary(
        pb.DeleteDictionaryRequest(name=full("signs"), etag=etag)
    )
    assert await names(served) == []
    for table in (dictionary_pieces, dictionary_labels):
        left = await served.app.database.read(lambda c, t=table: c.execute(t.select()).all())
        assert left == []
    gone = await failure(
        served.generation.FetchActivations(
            fetch(capture={"sites": [site(1)], "projection": {"dictionary": full("signs")}})
        )
    )
    assert (gone.reason, gone.field) == (
        "RESOURCE_NOT_FOUND",
        "readouts[0].rows.projection.dictionary",
    )


async def test_they_are_listed_by_name_in_pages(served: Served) -> None:
    for name in ("c", "a", "b"):
        await uploaded(served, Sent(name=name))
    assert await names(served) == ["a", "b", "c"]
    page = await served.dictionaries.ListDictionaries(pb.ListDictionariesRequest(page_size=2))
    assert await names(served, page_token=page.next_page_token) == ["c"]


async def label(served: Served, labels: dict[int, str], **options: Any) -> str:
    request = pb.SetFeatureLabelsRequest(
        dictionary=full("signs"),
        labels=[pb.FeatureLabel(index=i, label=text, source="me") for i, text in labels.items()],
    )
    return (await served.dictionaries.SetFeatureLabels(request, **options)).etag


async def labels(served: Served, **fields: Any) -> dict[int, str]:
    request = pb.ListFeatureLabelsRequest(dictionary=full("signs"), **fields)
    page = await served.dictionaries.ListFeatureLabels(request)
    return {each.index: each.label for each in page.labels}


async def test_labels_stay_until_they_are_replaced(served: Served) -> None:
    before = (await uploaded(served)).etag
    after = await label(served, {3: "Ducks", 0: "100% of ponds"})
    assert after == (await get(served)).etag != before
    assert await labels(served) == {0: "100% of ponds", 3: "Ducks"}
    assert await labels(served, filter="duck") == {3: "Ducks"}
    assert await labels(served, filter="%") == {0: "100% of ponds"}
    page = await served.dictionaries.ListFeatureLabels(
        pb.ListFeatureLabelsRequest(dictionary=full("signs"), page_size=1)
    )
    assert await labels(served, page_token=page.next_page_token) == {3: "Ducks"}
    await label(served, {3: ""})
    assert await labels(served) == {0: "100% of ponds"}


async def test_what_a_tenant_has_does_not_exist_for_others(
    store: dict[str, str], tmp_path: Path
) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("one", "one", Role.EXPERIMENTER),
        ("two", "two", Role.EXPERIMENTER),
        ("reads", "one", Role.READER),
    )
    options = {"max_dictionary_bytes": 1 << 20, "token_file": tokens, **store}
    async with serving(engine(), **options) as served:
        made = await uploaded(served, metadata=bearing("one"))
        assert await get(served, metadata=bearing("reads")) == made
        hidden = await failure(
            served.dictionaries.GetDictionary(
                pb.GetDictionaryRequest(name=full("signs")), metadata=bearing("two")
            )
        )
        assert hidden.code is NOT_FOUND
        assert "did you mean" not in hidden.message
        refused = await failure(
            served.dictionaries.DeleteDictionary(
                pb.DeleteDictionaryRequest(name=full("signs")), metadata=bearing("reads")
            )
        )
        assert refused.reason == "PERMISSION_DENIED"
        # The other may have one of the same name.
        await uploaded(
            served,
            Sent(matrices(encoder=numbers(FEATURES, WIDTH, seed=9))),
            metadata=bearing("two"),
        )


async def test_nobody_uploads_unless_the_operator_allows_it(store: dict[str, str]) -> None:
    async with serving(engine(), **store) as served:
        refused = await failure(served.dictionaries.BeginUpload(Sent().request))
        assert refused.reason == "STORE_QUOTA_EXCEEDED"
        assert "--max-dictionary-bytes" in refused.message


async def test_an_upload_counts_from_its_beginning(store: dict[str, str]) -> None:
    size = sum(map(len, Sent().content))
    async with serving(engine(), max_dictionary_bytes=2 * size - 1, **store) as served:
        begun = await served.dictionaries.BeginUpload(Sent().request)
        full_up = await failure(served.dictionaries.BeginUpload(Sent(name="more").request))
        assert full_up.reason == "STORE_QUOTA_EXCEEDED"
        assert full_up.details["ErrorInfo"].metadata["stored_bytes"] == str(size)
        assert begun.upload


REFUSED_UPLOADS: list[tuple[str, Any, str, str]] = [
    (
        "another width",
        {"encoder": numbers(FEATURES, 5)},
        "TENSOR_WIDTH_MISMATCH",
        "matrices[0].shape",
    ),
    (
        "the wrong way round",
        {"encoder": numbers(WIDTH, FEATURES)},
        "TENSOR_WIDTH_MISMATCH",
        "matrices[0].shape",
    ),
    (
        "thresholds of other features",
        {"thresholds": numbers(FEATURES - 1)},
        "TENSOR_WIDTH_MISMATCH",
        "matrices[2].shape",
    ),
]


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [case[1:] for case in REFUSED_UPLOADS],
    ids=[case[0] for case in REFUSED_UPLOADS],
)
async def test_matrices_must_have_their_shapes(changed: Any, reason: str, field: str) -> None:
    async with serving(engine(), max_dictionary_bytes=1 << 20) as served:
        refused = await failure(served.dictionaries.BeginUpload(Sent(matrices(**changed)).request))
        assert (refused.code, refused.reason, refused.field) == (INVALID, reason, field)


REFUSED_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"kind": 0}, "dictionary.kind"),
    ({"site": None}, "dictionary.site"),
    ({"features": 0}, "dictionary.features"),
    ({"top_k": {"k": FEATURES + 1}}, "dictionary.top_k.k"),
    ({"relu": {}}, "matrices[2].role"),
    ({"written_sites": [site(2)]}, "dictionary.written_sites"),
    ({"kind": pb.DICTIONARY_KIND_TRANSCODER}, "dictionary.written_sites"),
]


@pytest.mark.parametrize(("about", "field"), REFUSED_FIELDS, ids=[f for _, f in REFUSED_FIELDS])
async def test_what_is_said_of_it_must_fit(about: dict[str, Any], field: str) -> None:
    given = about if {"relu", "top_k"} & about.keys() else {"jump_relu": {}, **about}
    async with serving(engine(), max_dictionary_bytes=1 << 20) as served:
        refused = await failure(served.dictionaries.BeginUpload(Sent(about=given).request))
        assert (refused.code, refused.field) == (INVALID, field)


REFUSED_CHUNKS: list[tuple[dict[str, Any], str, str]] = [
    ({"crc32c": 1}, "CHECKSUM_MISMATCH", "crc32c"),
    ({"offset": 4}, "FIELD_INVALID", "offset"),
    ({"matrix_index": 6}, "FIELD_INVALID", "matrix_index"),
    ({"content": b"", "crc32c": 0}, "FIELD_INVALID", "content"),
    ({"upload": "models/fake/dictionaries/signs/uploads/other"}, "RESOURCE_NOT_FOUND", "upload"),
    ({"upload": "signs"}, "RESOURCE_NOT_FOUND", "upload"),
]


@pytest.mark.parametrize(
    ("changes", "reason", "field"), REFUSED_CHUNKS, ids=[f"{r} {f}" for _, r, f in REFUSED_CHUNKS]
)
async def test_a_wrong_chunk_writes_nothing(
    changes: dict[str, Any], reason: str, field: str
) -> None:
    async with serving(engine(), max_dictionary_bytes=1 << 20) as served:
        sent = Sent()
        request = sent.request
        begun = await served.dictionaries.BeginUpload(request)
        wrong = chunk(begun.upload, 0, 0, sent.content[0])
        for name, value in changes.items():
            setattr(wrong, name, value)
        refused = await failure(served.dictionaries.UploadChunk(wrong))
        assert (refused.reason, refused.field) == (reason, field)
        again = await served.dictionaries.BeginUpload(request)
        assert again.received_bytes[0] == 0


async def test_bytes_beyond_a_matrix_are_refused() -> None:
    async with serving(engine(), max_dictionary_bytes=1 << 20) as served:
        sent = Sent()
        begun = await served.dictionaries.BeginUpload(sent.request)
        more = chunk(begun.upload, 0, 0, sent.content[0] + b"1")
        assert (await failure(served.dictionaries.UploadChunk(more))).field == "content"


async def test_numbers_that_are_not_finite_are_refused() -> None:
    async with serving(engine(), max_dictionary_bytes=1 << 20) as served:
        decoder = matrices()["decoder"]
        decoder[3, 1] = np.inf
        sent = Sent(matrices(decoder=decoder))
        begun = await served.dictionaries.BeginUpload(sent.request)
        for index, content in enumerate(sent.content):
            await served.dictionaries.UploadChunk(chunk(begun.upload, index, 0, content))
        refused = await failure(
            served.dictionaries.FinishUpload(pb.FinishUploadRequest(upload=begun.upload))
        )
        assert refused.reason == "TENSOR_NOT_FINITE"


USES: list[tuple[dict[str, Any], str, str]] = [
    ({"dictionary": full("sings")}, "RESOURCE_NOT_FOUND", "dictionary"),
    ({"dictionary": "signs"}, "RESOURCE_NOT_FOUND", "dictionary"),
    ({"dictionary": full("signs"), "relu": {}}, "FIELD_INVALID", "relu"),
    (
        {"directions": {"dictionary": {"dictionary": full("signs")}}},
        "FIELD_INVALID",
        "directions.dictionary.side",
    ),
    (
        {
            "directions": {
                "dictionary": {"dictionary": full("signs"), "side": 1, "features": [FEATURES]}
            }
        },
        "FIELD_INVALID",
        "directions.dictionary.features[0]",
    ),
    (
        {
            "directions": {
                "dictionary": {"dictionary": full("signs"), "side": 2, "features": [1, 1]}
            }
        },
        "FIELD_INVALID",
        "directions.dictionary.features[1]",
    ),
]


@pytest.mark.parametrize(
    ("projection", "reason", "field"), USES, ids=[f"{r} {f}" for _, r, f in USES]
)
async def test_a_wrong_use_is_refused(projection: dict[str, Any], reason: str, field: str) -> None:
    async with serving(engine(), max_dictionary_bytes=1 << 20) as served:
        await uploaded(served)
        request = fetch(capture={"sites": [site(1)], "projection": projection})
        refused = await failure(served.generation.FetchActivations(request))
        assert refused.reason == reason
        assert refused.field == f"readouts[0].rows.projection.{field}"


async def test_a_chunk_that_comes_while_an_upload_is_finished_leaves_nothing_half_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = Sent()
    async with serving(max_dictionary_bytes=1 << 20) as served:
        begun = await served.dictionaries.BeginUpload(sent.request)
        for index, content in enumerate(sent.content):
            await served.dictionaries.UploadChunk(chunk(begun.upload, index, 0, content))
        stored = served.app.dictionaries.stored
        read = stored.uploaded

        async def written_meanwhile(tenant: str, dictionary: str, upload: str) -> Any:
            found = await read(tenant, dictionary, upload)
            await served.dictionaries.UploadChunk(chunk(upload_name, 0, 0, bytes(4)))
            return found

        upload_name = begun.upload
        request = pb.FinishUploadRequest(upload=begun.upload)
        with monkeypatch.context() as patch:
            patch.setattr(stored, "uploaded", written_meanwhile)
            refused = await failure(served.dictionaries.FinishUpload(request))
        await served.dictionaries.FinishUpload(request)
        # What is stored is what was checked: it can be read.
        await served.app.dictionaries.load("", {"signs": ("name",)})
    assert refused.reason == "UPLOAD_INCOMPLETE"
