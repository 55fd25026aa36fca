"""What a type checker knows: the shape of the answer follows the shape of the question.

Nothing here runs; `make lint` checks it.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import actserve
from actserve import Activations, ExplainedText, Generation, Tokenized

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
        predict = actserve.Predict(top_k=1)
        assert_type(client.fetch("a", predictions=predict, keep=actserve.Keep()), Activations)
        assert_type(client.fetch(["a"], "embedding", reduce="mean"), list[Activations])
        acts = client.fetch("a", attention=actserve.Attention(0, 1))
        assert_type(acts.attention[0, 1], actserve.AttentionPattern)
        client.generate("a", readouts={"heads": actserve.AttentionSummary([0, 1], top_keys=2)})
        assert_type(acts.predictions["final_norm"], actserve.SitePredictions)
        assert_type(acts.sparse["embedding"], actserve.SparseRows)
        assert_type(client.fetch_means(["a"], ["x"], "z.0"), dict[str, actserve.LabelMeans])
        assert_type(client.kept("keptActivations/x"), actserve.Kept)
        assert_type(client.generate("a", sites="z.0", reduce="last", top_p=0.5), Generation)
        assert_type(client.generate("a", temperature=0.5, stop="."), Generation)
        assert_type(client.generate("a", samples=2), list[Generation])
        assert_type(client.generate(["a"]), list[Generation])
        assert_type(client.generate(["a"], samples=2), list[list[Generation]])
        assert_type(client.explain_text("a", samples=3, positions="last"), ExplainedText)
        assert_type(client.explain_text([turns, turns], nla="x"), list[ExplainedText])
        for token, explanation in client.explain_text(turns, score=True, timeout=3):
            assert_type(token, str)
            assert_type(explanation, actserve.Explanation)
        for event in client.explain_stream(np.ones(3), "z.0", best=True):
            assert_type(event, actserve.ExplainEvent)
        assert_type(client.reconstruct(["a"], "z.0"), NDArray[np.float32])
        assert_type(client.score_explanations(np.ones(3), "a", "z.0"), actserve.Score)
        assert_type(client.score_explanations(np.ones((1, 3)), ["a"], "z.0"), list[actserve.Score])
        assert_type(client.set_baseline(np.ones((2, 3)), "z.0"), actserve.Baseline)
        assert_type(client.models()[0].nlas, tuple[actserve.Nla, ...])
        edit = actserve.ExplanationEdit("a", "b")
        assert_type(client.generate("a", intervene=actserve.Add("z.0", edit)), Generation)
        assert_type(client.token_rows("embedding", [1, 2]), NDArray[np.float32])
        assert_type(client.head_matrices(0, [1, 2])[0].qk, NDArray[np.float32])
        assert_type(client.tokenize("a"), Tokenized)
        joy = client.vectors.create("joy", ["a"], ["b"], "resid_post.*", method="pca")
        assert_type(joy, actserve.StoredVector)
        for vector in client.vectors.list({"a": "b"}):
            assert_type(vector, actserve.StoredVector)
        sweep = client.sweep(
            ["a", "b"], joy, coefficients=[1, 2], answers=["x"], max_tokens=3, temperature=0.5
        )
        assert_type(sweep, actserve.Sweep)
        probe = actserve.Probe("z.0", "joy", smoothing=actserve.Ema(0.1), reduce="max")
        variants = {"joy": actserve.Variant("joy", [1.0], "resid_post.*", ["all", "last"])}
        for cell in client.sweep_iter({"k": "a"}, variants=variants, scores={"joy": probe}):
            assert_type(cell, actserve.SweepCell)
        assert_type(sweep.curves("good - bad"), list[actserve.Curve])
        client.vectors.combine("calm", {"joy": 1, joy: -0.5}, without=[joy, "anger"])
        intervene = [joy, joy.add(2.0), actserve.Add("z.0", "joy"), actserve.Ablate("z.0", joy)]
        assert_type(client.generate("a", intervene=intervene), Generation)
        assert_type(client.tokenize(["a"]), list[Tokenized])

    async def asynchronous(client: actserve.AsyncClient) -> None:
        assert_type(await client.fetch("a", "embedding"), Activations)
        assert_type(await client.fetch(["a"], "embedding"), list[Activations])
        acts = await client.fetch("a", predictions=actserve.Predict(top_k=1))
        assert_type(acts, Activations)
        means = await client.fetch_means(["a"], ["x"], "embedding")
        assert_type(means["x"]["embedding"], NDArray[np.float32])
        assert_type(await client.kept("keptActivations/x"), actserve.Kept)
        assert_type(await client.generate("a"), Generation)
        assert_type(await client.generate("a", samples=2), list[Generation])
        assert_type(await client.generate(["a"]), list[Generation])
        assert_type(await client.generate(["a"], samples=2), list[list[Generation]])
        assert_type(await client.tokenize(["a"]), list[Tokenized])
        assert_type(await client.explain_text("a", best=True), ExplainedText)
        assert_type(await client.explain_text(["a"]), list[ExplainedText])
        assert_type(await client.score_explanations(np.ones(3), "a", "z.0"), actserve.Score)
        async for explained in client.explain_text_stream("a"):
            assert_type(explained, actserve.ExplainEvent)
        joy = await client.vectors.get("joy")
        assert_type(joy, actserve.StoredVector)
        async for cell in client.sweep_iter("a", joy):
            assert_type(cell, actserve.SweepCell)
        async for vector in client.vectors.list():
            assert_type(vector, actserve.StoredVector)
        async for event in client.stream("a"):
            assert_type(event, actserve.Event)
