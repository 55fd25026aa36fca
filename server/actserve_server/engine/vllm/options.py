"""What a vLLM engine is started with; vLLM's own options keep vLLM's names."""

from dataclasses import dataclass

from actserve_server.domain.lora_adapter import LoraAdapter

GPU_TAPS_PIECES, GPU_TAPS_TRITON = "pieces", "triton"
"""What steps with taps go through on a GPU: CUDA graphs of the pieces between taps, or where it can
serve them a full one that has taps as kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """None leaves a vLLM option at vLLM's default."""

    model_id: str
    """The name the model is served under."""
    model_path: str
    """A local folder or a Hugging Face id."""

    max_capture_bytes: int = 1 << 30
    vector_budget_bytes: int = 256 << 20
    """What the float32 vectors of runs in flight may take of the model's device."""
    workspace_budget_bytes: int = 2 << 30
    """What a step may take of the model's device beside what vLLM takes. On a GPU the KV cache
    leaves it."""
    row_cache_bytes: int = 256 << 20
    """What captured rows of prompts may take of the server's memory, for runs that capture the same
    again; 0 keeps none."""
    max_items: int = 1024
    max_samples: int = 64
    max_interventions: int = 64
    max_request_bytes: int = 32 << 20
    max_kept_bytes: int = 1 << 30
    max_kept_seconds: int = 3600
    max_sweep_bytes: int = 1 << 30
    max_sweep_seconds: int = 7 * 24 * 3600
    max_monitors: int = 1000
    max_monitor_bytes: int = 256 << 20
    max_dictionaries: int = 100
    max_dictionary_bytes: int = 0
    max_alerts: int = 1_000_000
    max_alert_seconds: int = 30 * 24 * 3600
    max_pause_seconds: int = 600
    max_fit_bytes: int = 4 << 30
    max_fit_examples: int = 16_384
    default_kept_seconds: int = 600
    max_steering_vectors: int = 10_000
    max_steering_vector_bytes: int = 1 << 30
    max_relative_dose: float | None = None
    dose_action: str = "refuse"
    hook_points: tuple[str, ...] = ()
    """What to tap; everything the model has when empty."""
    lean_graphs: bool = True
    """Whether steps that use few taps, or none, are computed by graphs without the others."""
    gpu_taps: str = GPU_TAPS_PIECES
    speculative_tokens: int = 0
    """Tokens of a greedy run that may be guessed ahead at a step; none if 0."""
    share_plain_prefixes: bool = False
    """Whether runs that change nothing share cached prefixes with those of other tenants."""
    adapters: tuple[LoraAdapter, ...] = ()
    """LoRA adapters to load, of which a run may have one."""
    place_embeddings: bool = False
    """Whether runs may have placements. Embeddings are then looked up outside the graph."""
    log_stats: bool = True
    """Whether vLLM keeps its metrics. A process has those of one engine: the last that asked."""

    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    kv_cache_memory_bytes: int | None = None
    """Bytes for the KV cache. On CPU, None means `cpu_kv_cache_bytes`."""
    cpu_kv_cache_bytes: int = 2 << 30
    """vLLM's own choice on CPU is a share of all memory, too much for a laptop."""
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    nnodes: int = 1
    """Machines over which the model is split, each with as many of its devices."""
    node_rank: int = 0
    """Which of them this is. Rank 0 of the model, whose worker sends the rows, is on machine 0."""
    master_addr: str = "127.0.0.1"
    master_port: int = 29501
    block_size: int | None = None
    reasoning_parser: str = ""
    """How the model sets thoughts apart, in which output of a fixed form has not begun."""
    enforce_eager: bool = False
    """Turns torch.compile and CUDA graphs off. For debugging only."""
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    revision: str | None = None
    seed: int = 0
