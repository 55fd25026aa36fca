"""Fuzzes decoders, led by what of the code their inputs reach (atheris, on libFuzzer).

    python -m tests.fuzzing.guided              # each in turn, but for `LEFT_OUT`
    python -m tests.fuzzing.guided NAME [-max_total_time=600 and others of libFuzzer's options]

Each begins with its `corpus/NAME`, and tries `FUZZ_CASES` inputs. What reaches more is kept in
`build/fuzz/NAME`, where the next time goes on; an input that fails is written beside it. Once the
fault is mended, it belongs into the corpus.
"""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

READERS = ["actserve", "actserve_server", "gguf", "jwt", "numpy.lib", "yaml", "zipfile"]
"""The packages whose branches count."""
CORPUS = Path(__file__).parent / "corpus"
CASES = int(os.environ.get("FUZZ_CASES", "50000"))
WITHIN_S = 300
"""Of one decoder: some read a file for each input, and take longer than others."""
LEFT_OUT = {"rows_parquet"}
"""By default. pyarrow 26 ends the process, and raises nothing, where the size statistics of a
column of lists are damaged (`RowGroupMetaData.column`); docs/limits.md says so."""
FOUND = Path("build/fuzz")
BOUNDS = ("-timeout=20", "-rss_limit_mb=4096", "-malloc_limit_mb=1024")
"""Of one input: seconds until it hangs, and mebibytes."""


def fuzz(name: str, options: list[str]) -> None:
    """Ends the process, by an error if an input fails."""
    import atheris
    import structlog

    # The stubs of atheris that pyright has know nothing of it.
    hook = atheris.instrument_imports  # pyright: ignore[reportAttributeAccessIssue]
    with hook(include=READERS):
        from tests.fuzzing.decoders import DECODERS, MAX_BYTES

    for each in (CORPUS / name).iterdir():
        DECODERS[name].try_one(each.read_bytes())  # What it imports once takes longer than bounds.
    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    arguments = [
        sys.argv[0],
        *BOUNDS,
        f"-max_len={MAX_BYTES}",
        "-len_control=0",  # From the first input on, and not only of those after many.
        f"-artifact_prefix={FOUND}/{name}-",
        *options,
        str(found),
        str(CORPUS / name),
    ]
    atheris.Setup(arguments, DECODERS[name].try_one)
    atheris.Fuzz()


def fuzz_all() -> int:
    """How many fail."""
    failed = 0
    for name in sorted({each.name for each in CORPUS.iterdir()} - LEFT_OUT):
        options = [f"-runs={CASES}", f"-max_total_time={WITHIN_S}"]
        command = [sys.executable, "-m", "tests.fuzzing.guided", name, *options]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        failed += bool(done.returncode)
        lines = done.stderr.splitlines()
        tried = next((line for line in lines if line.startswith("Done")), "failed")
        print(f"{name}: {tried}, {time.monotonic() - began:.0f} s with its start", flush=True)
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], flush=True)
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 1:
        fuzz(sys.argv[1], sys.argv[2:])
    sys.exit(fuzz_all())
