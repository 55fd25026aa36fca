"""DictionaryService: translates, nothing else."""

import grpc

from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import dictionary_service_pb2_grpc
from actserve_server.dictionaries.dictionary import DictionaryCheck, LoadedDictionary
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry, check_etag
from actserve_server.dictionaries.dictionary_sources import ID
from actserve_server.dictionaries.reconstruction import measured
from actserve_server.dictionaries.stored_dictionaries import exists, no_upload
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.principals import Role
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.rpc.requests import dictionary_fields, named_dictionaries, pages
from actserve_server.rpc.requests.request_ids import making_request
from actserve_server.rpc.resource_names import upload_ids
from actserve_server.rpc.responses import chunks, dictionary_descriptions, model_descriptions
from actserve_server.rpc.transport.calls import current_call


class DictionaryServicer(dictionary_service_pb2_grpc.DictionaryServiceServicer):
    def __init__(self, engine: AdmittedEngine, dictionaries: DictionaryRegistry) -> None:
        self._engine = engine
        self._dictionaries = dictionaries

    async def GetDictionary(  # noqa: N802
        self, request: pb.GetDictionaryRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetDictionaryResponse:
        about = await self._dictionaries.get(_tenant(), self._id(request.name))
        return pb.GetDictionaryResponse(
            dictionary=dictionary_descriptions.to_wire(about, self._engine.info)
        )

    async def ListDictionaries(  # noqa: N802
        self, request: pb.ListDictionariesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListDictionariesResponse:
        info = self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        size, after = pages.size(request.page_size), pages.after(request.page_token)
        if after and not ID.fullmatch(after):
            raise pages.not_ours()
        found = await self._dictionaries.list(_tenant(), after, size + 1)
        every = (dictionary_descriptions.to_wire(each, info) for each in found[:size])
        page = list(chunks.fitting(every))
        more = found[len(page) - 1].id if len(found) > len(page) else ""
        return pb.ListDictionariesResponse(dictionaries=page, next_page_token=pages.token(more))

    async def DeleteDictionary(  # noqa: N802
        self, request: pb.DeleteDictionaryRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteDictionaryResponse:
        current_call().principal.require(Role.EXPERIMENTER, "deleting dictionaries")
        await self._dictionaries.delete(_tenant(), self._id(request.name), request.etag)
        return pb.DeleteDictionaryResponse()

    async def BeginUpload(  # noqa: N802
        self, request: pb.BeginUploadRequest, context: grpc.aio.ServicerContext
    ) -> pb.BeginUploadResponse:
        current_call().principal.require(Role.EXPERIMENTER, "uploading dictionaries")
        info = self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        about, matrices = dictionary_fields.new_dictionary(request, info)
        making = await making_request(request)
        if self._dictionaries.is_of_server(about.id):
            raise exists(info.id, about.id)
        begun = await self._dictionaries.stored.begin(_tenant(), about, matrices, making)
        return dictionary_descriptions.upload(begun, info)

    async def UploadChunk(  # noqa: N802
        self, request: pb.UploadChunkRequest, context: grpc.aio.ServicerContext
    ) -> pb.UploadChunkResponse:
        current_call().principal.require(Role.EXPERIMENTER, "uploading dictionaries")
        dictionary, upload = self._upload(request.upload)
        await off_loop(dictionary_fields.chunk, request)
        index = request.matrix_index
        written = await self._dictionaries.stored.write_chunk(
            _tenant(), dictionary, upload, index, request.offset, request.content
        )
        return pb.UploadChunkResponse(
            received_bytes=written.received_bytes[index],
            expire_time=dictionary_descriptions.time(written.expires_at_us),
        )

    async def FinishUpload(  # noqa: N802
        self, request: pb.FinishUploadRequest, context: grpc.aio.ServicerContext
    ) -> pb.FinishUploadResponse:
        current_call().principal.require(Role.EXPERIMENTER, "uploading dictionaries")
        dictionary, upload = self._upload(request.upload)
        about = await self._dictionaries.finish(_tenant(), dictionary, upload, self._check)
        return pb.FinishUploadResponse(
            dictionary=dictionary_descriptions.to_wire(about, self._engine.info)
        )

    async def SetFeatureLabels(  # noqa: N802
        self, request: pb.SetFeatureLabelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.SetFeatureLabelsResponse:
        current_call().principal.require(Role.EXPERIMENTER, "labelling features")
        tenant, dictionary = _tenant(), self._id(request.dictionary, "dictionary")
        about = await self._dictionaries.get(tenant, dictionary, ("dictionary",))
        check_etag(about, request.etag, self._engine.info.id)
        given = dictionary_fields.labels(request.labels, about.features)
        await self._dictionaries.labels.set(tenant, dictionary, given)
        now = await self._dictionaries.get(tenant, dictionary, ("dictionary",))
        return pb.SetFeatureLabelsResponse(etag=now.etag)

    async def ListFeatureLabels(  # noqa: N802
        self, request: pb.ListFeatureLabelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListFeatureLabelsResponse:
        tenant, dictionary = _tenant(), self._id(request.dictionary, "dictionary")
        size, after = pages.size(request.page_size), pages.after(request.page_token)
        if after and not (after.isascii() and after.isdigit() and len(after) <= len("4294967295")):
            raise pages.not_ours()
        text = dictionary_fields.label_filter(request.filter)
        await self._dictionaries.get(tenant, dictionary, ("dictionary",))
        found = await self._dictionaries.labels.list(
            tenant, dictionary, int(after) if after else -1, size + 1, text
        )
        every = (
            pb.FeatureLabel(index=each.feature, label=each.label, source=each.source)
            for each in found[:size]
        )
        page = list(chunks.fitting(every))
        more = str(found[len(page) - 1].feature) if len(found) > len(page) else ""
        return pb.ListFeatureLabelsResponse(labels=page, next_page_token=pages.token(more))

    async def _check(self, loaded: LoadedDictionary) -> DictionaryCheck | None:
        """What is uploaded is stored however little it explains: that is told, and the caller
        decides."""
        call, info = current_call(), self._engine.info
        try:
            return await measured(loaded, self._engine, info, f"{call.id}-check", _tenant())
        except ActserveError:
            return None

    def _id(self, name: str, field: str = "name") -> str:
        return named_dictionaries.id_of(name, self._engine.info, (field,))

    def _upload(self, name: str) -> tuple[str, str]:
        found = upload_ids(name, self._engine.info)
        if found is None:
            raise no_upload(name)
        return found


def _tenant() -> str:
    return current_call().principal.tenant
