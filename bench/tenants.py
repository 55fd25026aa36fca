"""Whether one tenant can tell by the clock what another has computed.

The same long prompts are answered to one tenant, to it again, and then to another. What is in the
prefix cache is answered at once, and nothing of another tenant's may be.
"""

import hashlib
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

import actserve
from bench.servers import served

PROMPTS, PROMPT_TOKENS = 12, 700
_TENANTS = ("first", "second")


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """Medians over the prompts, in ms, until the one token that was asked for."""

    first_new: float
    """To the first tenant, of prompts that nobody has sent before."""
    first_again: float
    """To it again: what the prefix cache makes of it."""
    second_new: float
    """To the second tenant, of the same prompts."""
    second_again: float
    """To it again."""

    @property
    def told_apart(self) -> float:
        """How the second tenant's first answers compare with prompts that nobody has sent: one is
        no difference."""
        return self.second_new / self.first_new


def measure_tenants(model: str, dtype: str, progress: Console) -> TenantFigures:
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.yaml"
        tokens.write_text(
            "".join(
                f"- {{sha256: {hashlib.sha256(name.encode()).hexdigest()}, tenant: {name}, "
                "role: experimenter}\n"
                for name in _TENANTS
            )
        )
        options = ["--model", model, "--dtype", dtype, "--token-file", str(tokens)]
        with served(*options) as server:
            target = f"127.0.0.1:{server.port}"
            first, second = (actserve.Client(target, token=name) for name in _TENANTS)
            random = np.random.default_rng(3)
            prompts = [
                random.integers(1000, 40_000, PROMPT_TOKENS).tolist() for _ in range(PROMPTS)
            ]
            first.generate(random.integers(1000, 40_000, PROMPT_TOKENS).tolist(), max_tokens=1)
            figures = TenantFigures(
                *(_median(client, prompts) for client in (first, first, second, second))
            )
    progress.print(figures)
    return figures


def tenant_tables(figures: TenantFigures) -> list[str]:
    return [
        (
            f"to the first token: the first tenant {figures.first_new:.0f} ms, again "
            f"{figures.first_again:.0f} ms; then the second tenant with the same prompts "
            f"{figures.second_new:.0f} ms, {figures.told_apart:.2f} of new ones, again "
            f"{figures.second_again:.0f} ms"
        )
    ]


def _median(client: actserve.Client, prompts: list[list[int]]) -> float:
    times: list[float] = []
    for prompt in prompts:
        started = time.perf_counter()
        client.generate(prompt, max_tokens=1, temperature=0.0)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)
