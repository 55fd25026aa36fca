"""Every option of the server, in one place.

A flag wins over an environment variable (`ACTSERVE_` and the name in capitals), which wins over the
YAML file of `--config`, which wins over the default. There is no `trust_remote_code`: a model
folder or hub repository is data, and nothing of it is ever executed.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from actserve_server.dictionaries.dictionary_sources import DictionarySource
from actserve_server.domain.sites import HookPoint
from actserve_server.models.lora_sources import LoraSource
from actserve_server.nla.pair_sources import NlaSource

ENV_PREFIX = "ACTSERVE_"
FAKE_MODEL = "fake"
"""Made-up rows and text, for trying a client."""
PROGRAM = "actserve-server serve"

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[a-z0-9_.:\[\]-]+)$")]
"""As browsers tell it: scheme, host, and a port that is not the scheme's, without a slash."""
PositiveInt = Annotated[int, Field(ge=1)]

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
"""By which an issuer may sign: by a private key, whose public one proves and cannot sign."""

MIN_VECTOR_BUDGET_BYTES = 16 << 20
"""Of vectors that the self-test of a model needs room for."""


class ConfigError(Exception):
    """The options cannot be used; the message says which, and why."""


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Settings(BaseSettings):
    """Serves one model over gRPC."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_prog_name=PROGRAM,
        protected_namespaces=(),
    )

    config: Path | None = Field(None, description="YAML file with any of the options below")

    model: str = Field(
        "smollm2-135m",
        description="an embedded model's name, a local folder, or a Hugging Face id; `fake` makes "
        "everything up without a model, for trying a client",
    )
    model_id: str | None = Field(
        None, description="name to serve the model under; its own when unset", min_length=1
    )
    cache_dir: Path | None = Field(None, description="where prepared models are kept")
    revision: str | None = Field(None, description="revision of a Hugging Face model")
    lora: tuple[LoraSource, ...] = Field(
        (),
        description="LoRA adapters that requests may name: NAME=FOLDER or NAME=HUGGING_FACE_ID, "
        "and revision=... after it, as PEFT saves them in safetensors; may be given several times",
    )
    data_dir: Path | None = Field(
        None,
        description="folder for what is stored, such as steering vectors, in an SQLite database; "
        "of this server alone, and on a disk of its machine; unless set, actserve in "
        "$XDG_DATA_HOME or in ~/.local/share",
    )
    database_url: SecretStr | None = Field(
        None,
        description="store in PostgreSQL instead, which several replicas may share: "
        "postgresql://user:password@host:5432/database?sslmode=verify-full; rather in the "
        "environment or the file than as a flag, which others on the machine can read",
    )

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: Port = Field(50051, description="gRPC port; 0 takes a free one")
    health_port: Port | None = Field(
        None,
        description="port where health (grpc.health.v1) alone is answered, without TLS, for probes "
        "that cannot speak it; 0 takes a free one",
    )
    http_port: Port | None = Field(
        None,
        description="port that speaks HTTP, for browsers (the same services over Connect and "
        "gRPC-Web) and for clients of OpenAI's API, with the same TLS and tokens; 0 takes a free "
        "one, none when unset",
    )
    http_origins: tuple[Origin, ...] = Field(
        (),
        description="origins, such as https://lab.example.com, whose pages may call the HTTP port, "
        "beside this server's own, and names by which it is called where it asks for no tokens; * "
        "for all pages, which needs token_file; may be given several times",
    )
    explorer: bool = Field(
        True,
        description="serve the explorer, a page to look into the model with, at / of the HTTP port",
    )
    metrics_host: str = Field("127.0.0.1", description="address of the metrics page")
    metrics_port: Port = Field(9090, description="Prometheus metrics port; 0 turns them off")
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[A-Za-z0-9_.:\[\]-]+/?$",
        description="collector of OpenTelemetry that gets a span of each call and its stages, such "
        "as http://collector:4317; needs actserve-server[otel]; unless set, none but what the "
        "variables OTEL_EXPORTER_OTLP_... say",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="log level")
    drain_grace_s: Seconds = Field(
        30.0, description="seconds that running calls get to finish after SIGTERM"
    )
    max_connection_age_s: Seconds = Field(
        1800.0, description="seconds after which clients reconnect, and so rebalance; 0 for never"
    )

    reader_timeout_s: Seconds = Field(
        60.0,
        description="seconds for a client to take a message that waits for it; then its call is "
        "ended and what it holds is freed; 0 for no limit",
    )

    tls_cert: Path | None = Field(None, description="PEM certificate chain; turns TLS on")
    tls_key: Path | None = Field(None, description="PEM key of the certificate")
    tls_client_ca: Path | None = Field(
        None, description="PEM authorities; clients must show a certificate of one (mTLS)"
    )
    token_file: Path | None = Field(
        None,
        description="YAML list of known tokens' hashes, tenants and roles, read again when it "
        "changes; calls must carry one of the tokens (health stays open)",
    )
    certificate_file: Path | None = Field(
        None,
        description="YAML list of names in client certificates, with their tenants and roles, read "
        "again when it changes; needs tls_client_ca; calls without a token are known by it",
    )
    oidc_issuer: str | None = Field(
        None,
        min_length=1,
        description="issuer (iss) of signed tokens (JSON Web Tokens of OpenID Connect) that are "
        "known too; goes with oidc_audience and oidc_keys",
    )
    oidc_audience: str | None = Field(
        None, min_length=1, description="audience (aud) that those tokens must be for"
    )
    oidc_keys: str | None = Field(
        None,
        min_length=1,
        description="public keys of the issuer, a JSON Web Key Set: a file, read again when it "
        "changes, or an https:// address, asked every ten minutes and for ids that are not known",
    )
    oidc_algorithms: tuple[Algorithm, ...] = Field(
        ("RS256", "ES256"),
        min_length=1,
        description="algorithms by which those tokens may be signed; may be given several times",
    )
    oidc_tenant_claim: str = Field(
        "tenant", min_length=1, description="claim of those tokens that names the tenant"
    )
    oidc_role_claim: str = Field(
        "role",
        min_length=1,
        description="claim that names the role, or a list such as groups, of which that counts "
        "which may do most",
    )
    oidc_role_prefix: str = Field(
        "", description="what stands there before the role, such as actserve- in actserve-reader"
    )
    insecure: bool = Field(
        False,
        description="listen beyond this machine although TLS (tls_cert), or known callers "
        "(token_file, certificate_file or oidc_issuer), are not set",
    )

    tenant_file: Path | None = Field(
        None,
        description="YAML of what each tenant may take (requests, tokens and captured bytes a "
        "minute, calls at once, what is stored, dose) and its weight, read again when it changes",
    )
    audit_log: Path | None = Field(
        None,
        description="file to which a line of JSON is added for each call that changes activations "
        "or what is stored: who, what, digests of vectors and receipts, and nothing of prompts",
    )
    tenant_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="the most of what is bounded for all together (calls, sequences run at "
        "once and waiting, captured and kept bytes, bytes of vectors, what is stored) that one "
        "tenant may take; without token_file, of captured bytes and of vectors one call",
    )
    share_plain_prefixes: bool = Field(
        False,
        description="with token_file: let tenants share the KV cache of common beginnings, and "
        "rows cached of them, up to what is changed; quicker, but how quick an answer is tells "
        "what others have run",
    )

    webhooks: Path | None = Field(
        None,
        description="YAML list of the addresses that monitors may send alerts to, each with the "
        "key by which they are signed; none when unset",
    )
    webhook_timeout_s: float = Field(
        10.0, gt=0, le=300, description="seconds for a webhook to answer"
    )
    max_webhook_attempts: int = Field(
        8,
        ge=1,
        le=20,
        description="how often an alert is sent to a webhook that fails, after 5 seconds and then "
        "after twice as long each time, before it is given up",
    )
    alert_explanations_at_once: PositiveInt = Field(
        2, description="rows explained at once of those that raised alerts, where monitors ask so"
    )
    alert_explanations_a_minute: int = Field(
        30, ge=0, description="the most of them that are explained in a minute; others are dropped"
    )

    nla: tuple[NlaSource, ...] = Field(
        (),
        description="natural language autoencoder to load: the name of one that comes with the "
        "server, a folder with av and ar in it, 'av=... ar=...' with folders or Hugging Face ids, "
        "or grpc://host:port of a server that holds it; may be given several times",
    )
    nla_loadable: tuple[NlaSource, ...] = Field(
        (),
        description="as nla, for one that callers of the role operator may load while the server "
        "runs, and unload; no address; may be given several times",
    )
    nla_folder: Path | None = Field(
        None,
        description="folder of such pairs, read when they are asked for: each a folder with av and "
        "ar in it, known by its name",
    )

    max_baselines: int = Field(
        1024,
        ge=0,
        description="baselines of explanations that are stored of each NLA; 0 stores none",
    )

    hook_points: tuple[HookPoint, ...] = Field(
        (),
        description="hook points to serve, all that the model has when empty; each costs a call "
        "a layer and step, which shows on fast devices",
    )

    lean_graphs: bool = Field(
        True,
        description="compile the model two times more, without taps and with few, for steps that "
        "need no others; without it the server starts sooner and every step has all taps",
    )
    gpu_taps: Literal["pieces", "triton"] = Field(
        "pieces",
        description="what steps that read or change rows go through on a GPU: CUDA graphs of the "
        "pieces between taps, or triton, full ones with taps in them where these can serve; that "
        "has not been run on a GPU yet",
    )

    speculative_tokens: int = Field(
        0,
        ge=0,
        le=32,
        description="tokens of a greedy sequence that are guessed at a step, from what came before "
        "in it, and computed together; 0 guesses none",
    )

    max_calls: PositiveInt = Field(1024, description="calls in progress; more are refused")
    max_running: PositiveInt = Field(256, description="sequences run at once")
    max_queue: int = Field(
        1024, ge=0, description="sequences that may wait; calls beyond are refused"
    )
    max_items: PositiveInt = Field(1024, description="items in one FetchActivations call")
    max_samples: PositiveInt = Field(64, description="samples of one Generate call")
    max_interventions: PositiveInt = Field(64, description="interventions in one call")
    max_relative_dose: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="the most that interventions may add at a site, as a part of the typical norm "
        "of its rows; no limit when unset",
    )
    dose_action: Literal["refuse", "clamp"] = Field(
        "refuse",
        description="what becomes of a call that would add more than max_relative_dose: it is "
        "refused, or what it adds is scaled down, which its reports tell",
    )
    max_request_bytes: PositiveInt = Field(32 << 20, description="bytes of one request message")
    max_capture_bytes: PositiveInt = Field(
        1 << 30, description="captured bytes of one sequence, in the model's element type"
    )
    capture_budget_bytes: PositiveInt = Field(
        4 << 30, description="captured bytes of all sequences run at once"
    )
    vector_budget_bytes: int = Field(
        256 << 20,
        ge=MIN_VECTOR_BUDGET_BYTES,
        description="bytes of the vectors by which sequences run at once are changed, as float32, "
        "equal ones once; taken on the model's device when it starts, and the most of one sequence",
    )
    workspace_budget_bytes: PositiveInt = Field(
        2 << 30,
        description="bytes that a step may take of the model's device for rows until they are "
        "sent and for tables of what is changed, beside what vLLM takes",
    )
    row_cache_bytes: int = Field(
        256 << 20,
        ge=0,
        description="bytes of captured rows of prompts that are kept for the next capture of the "
        "same beginning, which then computes only what is new; 0 keeps none",
    )
    replica: str = Field(
        "",
        pattern="^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$",
        description="this server among others, told in the names of what it keeps, so that a proxy "
        "can route; a random one when empty",
    )
    max_kept_bytes: int = Field(
        1 << 30, ge=0, description="bytes of activations kept on the server; 0 keeps none"
    )
    max_kept_seconds: PositiveInt = Field(
        3600, description="seconds for which activations are kept at most"
    )
    default_kept_seconds: PositiveInt = Field(
        600, description="seconds for which activations are kept unless a call says how long"
    )
    max_steering_vectors: int = Field(
        10_000, ge=0, description="steering vectors that are stored; 0 stores none"
    )
    max_steering_vector_bytes: int = Field(
        1 << 30, ge=0, description="bytes of the elements of stored steering vectors"
    )
    dictionary: tuple[DictionarySource, ...] = Field(
        (),
        description="dictionary of features to load: NAME=PATH, with the folder of a sparse "
        "autoencoder or transcoder, or the name of one that comes with the server; more fields "
        "follow, as in 'NAME=PATH site=resid_post.10'; may be given several times",
    )
    dictionary_memory_bytes: PositiveInt = Field(
        4 << 30,
        description="bytes of memory that dictionaries in use take, as float32; those used last "
        "stay in it",
    )
    max_dictionaries: int = Field(
        100, ge=0, description="dictionaries that are stored or being uploaded"
    )
    max_dictionary_bytes: int = Field(
        0,
        ge=0,
        description="bytes of the matrices of dictionaries that callers upload; 0 lets nobody "
        "upload any",
    )
    max_sweep_bytes: int = Field(
        1 << 30,
        ge=0,
        description="bytes of finished cells of sweeps that are stored, the oldest going first, so "
        "that a sweep goes on where it was cut; 0 stores none",
    )
    max_sweep_seconds: PositiveInt = Field(
        7 * 24 * 3600, description="seconds for which they are stored"
    )

    max_monitors: int = Field(1000, ge=0, description="monitors that are stored; 0 stores none")
    max_monitor_bytes: int = Field(
        256 << 20,
        ge=0,
        description="bytes of the numbers of the probes and interventions of monitors, which are "
        "stored, and in the server's memory",
    )
    max_alerts: PositiveInt = Field(
        1_000_000, description="alerts that are stored; the oldest go first"
    )
    max_fit_bytes: int = Field(
        4 << 30,
        ge=0,
        description="bytes of rows in memory that fits of monitors work with, all together; texts "
        "of fits that wait may take as much again",
    )
    max_fit_examples: PositiveInt = Field(
        16_384, description="examples of one fit, benign and longer ones among them"
    )
    max_alert_seconds: PositiveInt = Field(
        30 * 24 * 3600, description="seconds for which alerts are stored"
    )
    max_pause_seconds: PositiveInt = Field(
        600, description="seconds for which a monitor may hold a sample back for a decision"
    )
    alert_text_tokens: int = Field(
        0,
        ge=0,
        le=1024,
        description="tokens of text that alerts hold, up to the one that raised them and a few "
        "after it; 0 for none, so that alerts tell nothing of prompts and outputs",
    )

    max_graphs: int = Field(
        1000, ge=0, description="attribution graphs that are stored; 0 stores none"
    )
    max_graph_bytes: int = Field(
        1 << 30, ge=0, description="bytes of the nodes and edges of stored attribution graphs"
    )
    max_graph_seconds: PositiveInt = Field(
        30 * 24 * 3600, description="seconds for which attribution graphs are stored"
    )
    graph_memory_bytes: PositiveInt = Field(
        8 << 30,
        description="bytes that the process beside the server may take that makes attribution "
        "graphs, on CPUs; it holds the model in float32",
    )
    graph_work_seconds: PositiveInt = Field(
        1800, description="seconds after which the work on an attribution graph is given up"
    )
    graph_idle_seconds: PositiveInt = Field(
        60, description="seconds after which that process is ended where it has nothing to do"
    )

    dtype: str = Field("auto", description="vLLM: element type to compute in")
    max_model_len: PositiveInt | None = Field(None, description="vLLM: context length")
    max_num_batched_tokens: PositiveInt | None = Field(None, description="vLLM: tokens a step")
    max_num_seqs: PositiveInt | None = Field(None, description="vLLM: sequences a step")
    kv_cache_memory_bytes: PositiveInt | None = Field(None, description="vLLM: KV cache size")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="vLLM: share of GPU memory to use"
    )
    tensor_parallel_size: PositiveInt = Field(
        1, description="vLLM: devices the model is split over"
    )
    nnodes: PositiveInt = Field(
        1,
        description="vLLM: machines the model is split over, each with as many of its devices and "
        "a process of this command with the same options; more than 1 has not been run yet",
    )
    node_rank: int = Field(
        0,
        ge=0,
        description="vLLM: which of those machines this is; 0 serves, and the others compute for "
        "it, listening to nobody else",
    )
    master_addr: str = Field(
        "127.0.0.1", min_length=1, description="vLLM: address of machine 0, by which others find it"
    )
    master_port: Port = Field(29501, description="vLLM: port there that they meet at")
    pipeline_parallel_size: PositiveInt = Field(
        1, description="vLLM: must be 1; use tensor_parallel_size for a model that is too large"
    )
    block_size: PositiveInt | None = Field(None, description="vLLM: tokens in a KV cache block")
    enforce_eager: bool = Field(
        False, description="vLLM: no torch.compile and no CUDA graphs; for debugging only"
    )
    tool_call_parser: str | None = Field(
        None,
        description="vLLM: how the model writes calls of tools, such as hermes; without it the "
        "OpenAI API knows no tools",
    )
    reasoning_parser: str = Field(
        "", description="vLLM: how the model sets thoughts apart, such as qwen3, if it does"
    )
    enable_prefix_caching: bool = Field(
        True, description="vLLM: reuse the KV cache of common beginnings"
    )
    enable_chunked_prefill: bool = Field(
        True, description="vLLM: split long prompts over several steps"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together; set both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.certificate_file is not None and self.tls_client_ca is None:
            raise ValueError(
                "certificate_file needs tls_client_ca, by which clients prove their certificates"
            )
        if self.tenant_file is not None and not self.knows_callers:
            raise ValueError(
                "tenant_file needs callers that are known: set token_file, certificate_file or "
                "oidc_issuer"
            )
        self._check_issuer()
        self._check_exposure()
        if "*" in self.http_origins and not self.knows_callers:
            raise ValueError(
                "http_origins is *, so every page that somebody opens could call; set token_file, "
                "or list the origins"
            )
        if self.http_origins and self.http_port is None:
            raise ValueError("http_origins needs http_port")
        if self.pipeline_parallel_size > 1:
            # Rows leave the worker of one rank, which would have those of its own layers alone.
            raise ValueError(
                f"pipeline_parallel_size is {self.pipeline_parallel_size}, but only 1 is served: "
                "vLLM 0.32 fails with more on CPU, so that no row could be proven exact; use "
                "tensor_parallel_size"
            )
        self._check_machines()
        if there := [each.address for each in self.nla_loadable if each.address]:
            raise ValueError(
                f"nla_loadable has {there[0]}, but only a pair on this machine is loaded here; "
                "give it as nla"
            )
        if self.lora and self.tensor_parallel_size > 1:
            raise ValueError(
                f"tensor_parallel_size is {self.tensor_parallel_size}, but adapters (lora) are "
                "served on 1 device alone: that their parts on several are right was not shown "
                "yet; serve a checkpoint that the adapter is merged into"
            )
        if self.max_capture_bytes > self.capture_budget_bytes:
            raise ValueError(
                f"max_capture_bytes ({self.max_capture_bytes}) is above capture_budget_bytes "
                f"({self.capture_budget_bytes}), so it could never run; raise the latter"
            )
        if self.default_kept_seconds > self.max_kept_seconds:
            raise ValueError(
                f"default_kept_seconds ({self.default_kept_seconds}) is above max_kept_seconds "
                f"({self.max_kept_seconds}); lower the former"
            )
        return self

    @property
    def knows_callers(self) -> bool:
        """Whether callers must say who they are."""
        return any((self.token_file, self.certificate_file, self.oidc_issuer))

    def _check_machines(self) -> None:
        if self.node_rank >= self.nnodes:
            raise ValueError(
                f"node_rank is {self.node_rank}, but nnodes is {self.nnodes}; count from 0"
            )
        if self.tensor_parallel_size % self.nnodes:
            raise ValueError(
                f"tensor_parallel_size ({self.tensor_parallel_size}) is not a multiple of nnodes "
                f"({self.nnodes}), so that machines would have unequal parts; make it one"
            )
        here = [*self.nla_loadable, *(source for source in self.nla if not source.address)]
        if self.nnodes > 1 and (here or self.nla_folder):
            raise ValueError(
                "nla, nla_loadable or nla_folder has pairs to load here, whose engines are of one "
                f"machine, but nnodes is {self.nnodes}; serve them by another server, and give its "
                "address"
            )

    def _check_issuer(self) -> None:
        given = (self.oidc_issuer, self.oidc_audience, self.oidc_keys)
        if any(given) and not all(given):
            raise ValueError(
                "oidc_issuer, oidc_audience and oidc_keys go together; set all of them or none"
            )
        address = urlsplit(self.oidc_keys or "")
        here = address.scheme == "http" and is_loopback(address.hostname or "")
        if "://" in (self.oidc_keys or "") and address.scheme != "https" and not here:
            raise ValueError(
                f"oidc_keys is {self.oidc_keys!r}, where anybody on the way could put other keys; "
                "use https://, or a file"
            )

    def _check_exposure(self) -> None:
        missing = [
            name
            for name, is_set in (
                ("tls_cert and tls_key", self.tls_cert is not None),
                ("token_file, certificate_file or oidc_issuer", self.knows_callers),
            )
            if not is_set
        ]
        if missing and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}, which others can reach; set {', and '.join(missing)}, or "
                "say that it is meant to be open by insecure (--insecure, ACTSERVE_INSECURE=true)"
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # `load` passes the sources it built for this call; plain construction takes arguments only.
        return (init_settings,)


class _Environment(EnvSettingsSource):
    """The environment, without what Kubernetes puts there.

    A Service named `actserve` makes it set ACTSERVE_PORT=tcp://10.0.0.1:50051 in every pod.
    """

    def _load_env_vars(self) -> Mapping[str, str | None]:
        loaded = super()._load_env_vars()
        port = f"{ENV_PREFIX}PORT".lower()
        return {
            key: value
            for key, value in loaded.items()
            if not (key.lower() == port and (value or "").startswith(("tcp://", "udp://")))
        }


def load(flags: Sequence[str] = ()) -> Settings:
    """The settings of a command line, the environment and the file they name.

    Raises `ConfigError`; `--help` and unknown flags exit, as argparse does.
    """
    given: dict[str, Any] = {}
    try:
        from_flags = CliSettingsSource(Settings, cli_parse_args=list(flags))()
        from_env = _Environment(Settings)()
        path = from_flags.get("config") or from_env.get("config")
        from_file = _read_file(Path(path)) if path else {}
        for source in (from_file, from_env, from_flags):
            given |= source
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    except SettingsError as error:
        raise ConfigError(str(error)) from None


def check_autoencoders(settings: Settings) -> None:
    """Raises `ConfigError` for NLAs of a model that can have none."""
    if settings.model == FAKE_MODEL and (
        settings.nla or settings.nla_loadable or settings.nla_folder
    ):
        raise ConfigError(
            f"nla: the model {FAKE_MODEL!r} makes its rows up, and has no autoencoders; serve "
            "another model, or leave out nla, nla_loadable and nla_folder"
        )


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config: there is no file {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config: {path} is not a YAML mapping of options to values")
    return values


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message}" if name else message)
    return "\n".join(lines)


__all__ = [
    "ENV_PREFIX",
    "FAKE_MODEL",
    "ConfigError",
    "Settings",
    "check_autoencoders",
    "load",
]
