"""What a type checker knows: the shape of the answer follows the shape of the question.

Nothing here runs; `make lint` checks it.
"""

from typing import TYPE_CHECKING, assert_type

import numpy as np

import actserve
from actserve import Activations, Generation, Tokenized

if TYPE_CHECKING:
    turns = [{"role": "user", "content": "hi"}]

    def sync(client: actserve.Client) -> None:
        assert_type(client.fetch("a", "embedding"), Activations)
        assert_type(client.fetch([1, 2], ["embedding"], positions="last"), Activations)
        assert_type(client.fetch(np.array([1, 2]), "embedding"), Activations)
        assert_type(client.fetch(turns, "embedding"), Activations)
        assert_type(client.fetch(actserve.Conversation(turns), "embedding"), Activations)
        assert_type(client.fetch(["a", "b"], "embedding"), list[Activations])
        assert_type(client.fetch([[1], [2]], "embedding"), list[Activations])
        assert_type(client.fetch(["a", [1, 2]], "embedding"), list[Activations])
        assert_type(client.fetch([turns, turns], "embedding"), list[Activations])
        assert_type(client.generate("a", temperature=0.5, stop="."), Generation)
        assert_type(client.generate("a", n=2), list[Generation])
        assert_type(client.generate(["a"]), list[Generation])
        assert_type(client.generate(["a"], n=2), list[list[Generation]])
        assert_type(client.tokenize("a"), Tokenized)
        assert_type(client.tokenize(["a"]), list[Tokenized])

    async def asynchronous(client: actserve.AsyncClient) -> None:
        assert_type(await client.fetch("a", "embedding"), Activations)
        assert_type(await client.fetch(["a"], "embedding"), list[Activations])
        assert_type(await client.generate("a"), Generation)
        assert_type(await client.generate("a", n=2), list[Generation])
        assert_type(await client.generate(["a"]), list[Generation])
        assert_type(await client.generate(["a"], n=2), list[list[Generation]])
        assert_type(await client.tokenize(["a"]), list[Tokenized])
        async for event in client.stream("a"):
            assert_type(event, actserve.Event)
