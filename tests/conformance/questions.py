"""Questions that every client must answer alike, of any server: rows, predictions, attention and
all else that is read of a model.
"""

from typing import Any

import pytest

from tests.conformance.drivers import Driver, Language, why_not

SITES = [
    {"hookPoint": "HOOK_POINT_RESID_POST", "layer": 15},
    {"hookPoint": "HOOK_POINT_Z", "layer": -1},
]
EVERY_READOUT = [
    {"name": "rows", "rows": {"sites": SITES}},
    {"name": "short", "rows": {"sites": SITES, "elementType": "ELEMENT_TYPE_BF16"}},
    {"name": "half", "rows": {"sites": SITES, "elementType": "ELEMENT_TYPE_F16"}},
    {"name": "mean", "rows": {"sites": SITES[:1], "reduction": "REDUCTION_MEAN"}},
    {
        "name": "lens",
        "predictions": {
            "sites": [SITES[0], {"hookPoint": "HOOK_POINT_FINAL_NORM"}],
            "topK": 3,
            "tokenIds": [5, 7],
            "nextToken": True,
        },
    },
    {"name": "heads", "attention": {"layer": 3, "heads": [0, 8]}},
    {"name": "top", "attention": {"layer": 3, "heads": [2], "topK": 2}},
    {"name": "summary", "attentionSummary": {"layers": [0, 29]}},
    {
        "name": "direct",
        "logitAttribution": {"sites": [SITES[1]], "targets": [{"tokenId": 5}]},
    },
]
PROMPTS = ["The capital of France is", "Zoë's naïve café ☕ costs"]
DICTIONARY = "models/smollm2-135m/dictionaries/smollm2-135m"
QUESTIONS: dict[str, dict[str, Any]] = {
    "what is read of prompts": {
        "operation": "collect",
        "method": "FetchActivations",
        "request": {
            "items": [{"key": text, "prompt": {"text": text}} for text in PROMPTS],
            "readouts": EVERY_READOUT,
        },
    },
    "what is written, and read meanwhile": {
        "operation": "collect",
        "method": "Generate",
        "request": {
            "prompt": {"text": PROMPTS[1]},
            "sampling": {"maxTokens": 12, "temperature": 0},
            "readouts": [EVERY_READOUT[0], EVERY_READOUT[4]],
        },
    },
    "statistics by label": {
        "operation": "collect",
        "method": "FetchActivations",
        "request": {
            "items": [
                {"key": text, "prompt": {"text": text}, "label": label}
                for text, label in zip(PROMPTS, ("plain", "odd"), strict=True)
            ],
            "readouts": [{"name": "acts", "rows": {"sites": SITES[:1], "statistics": {}}}],
        },
    },
    "the largest features of each token": {
        "operation": "collect",
        "method": "FetchActivations",
        "request": {
            "items": [{"key": text, "prompt": {"text": text}} for text in PROMPTS],
            "readouts": [
                {
                    "name": "top",
                    "rows": {
                        "sites": [{"hookPoint": "HOOK_POINT_RESID_POST", "layer": 20}],
                        "projection": {"dictionary": DICTIONARY, "sendTop": 5},
                    },
                }
            ],
        },
    },
    "what every head attends to": {
        "operation": "collect",
        "method": "MeasureHeads",
        "request": {
            "items": [{"key": text, "prompt": {"text": text}} for text in PROMPTS],
            "layers": [0, 29],
            "topTokens": 2,
            "patterns": {"topK": 2, "minimum": 0.25},
        },
    },
    "what a prediction comes from": {
        "operation": "graph",
        "request": {"prompt": {"text": PROMPTS[0]}},
    },
    "which tokens features make likelier": {
        "operation": "logit_effects",
        "dictionary": DICTIONARY,
        "features": [7, 2178],
        "k": 3,
    },
}


class Asked:
    """Drivers in front of one server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._drivers: dict[str, Driver] = {}
        self._answers: dict[tuple[str, str], Any] = {}

    def answer(self, language: Language, name: str) -> Any:
        """What a client makes of the answer to a question."""
        if reason := why_not(language):
            pytest.skip(reason)
        if (language.name, name) not in self._answers:
            if language.name not in self._drivers:
                self._drivers[language.name] = Driver(language)
            client = {"targets": [self.address]}
            question = {"client": client, **QUESTIONS[name]}
            answer = self._drivers[language.name].ask(question)
            assert "result" in answer, answer
            found = answer["result"]
            found.pop("call_id", None)  # Another one for every call.
            # Of statistics the Python client tells nothing else.
            self._answers[language.name, name] = found.get("statistics", found)
        return self._answers[language.name, name]

    def close(self) -> None:
        for driver in self._drivers.values():
            driver.close()
