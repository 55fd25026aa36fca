"""ModelService: translates, nothing else."""

import grpc

from actserve.v1 import model_service_pb2 as pb
from actserve.v1 import model_service_pb2_grpc
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.api import Engine
from actserve_server.rpc import resource_names
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import pages, prompt_fields
from actserve_server.rpc.responses import model_descriptions
from actserve_server.rpc.transport.calls import current_call


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, engine: Engine, autoencoders: Nlas) -> None:
        self._engine = engine
        self._autoencoders = autoencoders

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        pages.size(request.page_size)
        after = pages.after(request.page_token)
        if after >= resource_names.model_name(self._engine.info):
            return pb.ListModelsResponse()
        return pb.ListModelsResponse(models=[self._model()])

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetModelResponse:
        if not request.name:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "name is not set; this server serves "
                f"{resource_names.model_name(self._engine.info)!r}",
                field=("name",),
            )
        model_descriptions.check_model(request.name, self._engine.info, ("name",))
        return pb.GetModelResponse(model=self._model())

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.TokenizeResponse:
        model_descriptions.check_model(request.model, self._engine.info, ("model",))
        tokenized = await prompt_fields.tokenize(self._engine, request.prompt, ("prompt",))
        current_call().prompt_tokens = len(tokenized.ids)
        return pb.TokenizeResponse(prompt=prompt_fields.to_wire(tokenized))

    def _model(self) -> pb.Model:
        return model_descriptions.to_wire(self._engine.info, self._autoencoders)
