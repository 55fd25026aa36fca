"""What the keys of a sidecar mean: a document as a profile.

The schema, versions 1 and 2, is that of kitft/natural_language_autoencoders (`nla/config.py`,
`nla/schema.py`, `nla/datagen/sidecar.py`): one kind of file lies beside a model, the other
describes the data it was trained on, and other projects copy that one beside their models. What no
sidecar of theirs says, because their code does, is said in keys of our own; a family of checkpoints
(`pair_families.py`) is a set of these:

```yaml
family: easynla
injection: {site: block_output, layer: 1, coefficient: 1.0}   # or {site: embedding}
chat: {enable_thinking: false, prefill: "<explanation>\\n"}
form: tags                                                    # lines, raw
sampling: {temperature: 1.0, top_p: 1.0, max_tokens: 200}
tokens: {injection_count: 1}
reconstruction: {special_tokens: true, normalize_state: false}
baseline: {variance: 0.7335, median_norm: 120.5, rows: 50000, mean_file: baseline.safetensors}
```

Keys that mean nothing to us are ignored, apart from transformations of the rows, which are refused.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from safetensors import safe_open

from actserve_server.domain.runs import Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.nla.profile import (
    AddAtBlock,
    Baseline,
    Form,
    NlaProfile,
    ReconstructorProfile,
    ReplaceEmbedding,
    Slot,
    VerbalizerProfile,
)
from actserve_server.nla.sidecar import Half

_CLOSE = "</explanation>"


def profile(document: Mapping[str, Any], half: Half, source: str) -> NlaProfile:
    """A half as a document describes it. Raises ValueError that names `source` and every field
    that is missing or wrong."""
    schema = _Verbalizer if half is Half.AV else _Reconstructor
    try:
        return schema.model_validate(document).profile()
    except ValidationError as error:
        problems = "; ".join(_written(each) for each in error.errors())
        raise ValueError(f"{source}: {problems}") from error


def _spelled(scale: Any) -> Any:
    return None if scale in ("raw", "none") else scale


_Scale = Annotated[PositiveFloat | Literal["sqrt_d_model"] | None, BeforeValidator(_spelled)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Injection(_Part):
    site: Literal["embedding", "block_output"]
    layer: NonNegativeInt = 1
    coefficient: float = 1.0


class _Chat(_Part):
    enable_thinking: bool | None
    prefill: str = ""


class _Sampling(_Part):
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: NonNegativeInt | None = None
    repetition_penalty: PositiveFloat | None = None
    max_tokens: PositiveInt


class _Reconstruction(_Part):
    special_tokens: bool
    normalize_state: bool


class _Baseline(_Part):
    variance: PositiveFloat
    median_norm: PositiveFloat | None = None
    rows: NonNegativeInt = 0
    mean_file: Path | None = None


class _Half(_Part):
    kind: Literal["nla_model", "nla_dataset"] = "nla_model"
    schema_version: Literal[1, 2] = 2
    family: str
    base_checkpoint: str
    d_model: PositiveInt
    extraction_layer_index: NonNegativeInt
    mse_scale: _Scale = Field("sqrt_d_model", validation_alias=AliasPath("extraction", "mse_scale"))
    norm: Any = Field(None, validation_alias=AliasPath("extraction", "norm"))
    whitening: Any = None
    rows_whitening: Any = Field(None, validation_alias=AliasPath("extraction", "whitening"))
    baseline: _Baseline | None = None

    @field_validator("norm", "whitening", "rows_whitening")
    @classmethod
    def _no_transformation(cls, value: Any) -> None:
        if value not in (None, False, "none", "raw"):
            raise ValueError("rows are transformed before they are explained, which is not served")

    def _profile(
        self, verbalizer: VerbalizerProfile | None, reconstructor: ReconstructorProfile | None
    ) -> NlaProfile:
        return NlaProfile(
            family=self.family,
            base_checkpoint=self.base_checkpoint,
            site=Site(HookPoint.RESID_POST, self.extraction_layer_index),
            width=self.d_model,
            verbalizer=verbalizer,
            reconstructor=reconstructor,
            baseline=self.baseline and _measured(self.baseline, self.d_model),
        )


class _Verbalizer(_Half):
    template: str = Field(validation_alias=AliasPath("prompt_templates", "av"))
    marker: str = Field(min_length=1, validation_alias=AliasPath("tokens", "injection_char"))
    marker_id: NonNegativeInt = Field(validation_alias=AliasPath("tokens", "injection_token_id"))
    left_id: NonNegativeInt | None = Field(
        None, validation_alias=AliasPath("tokens", "injection_left_neighbor_id")
    )
    right_id: NonNegativeInt | None = Field(
        None, validation_alias=AliasPath("tokens", "injection_right_neighbor_id")
    )
    count: PositiveInt = Field(1, validation_alias=AliasPath("tokens", "injection_count"))
    injection_scale: _Scale = Field(
        None, validation_alias=AliasPath("extraction", "injection_scale")
    )
    injection: _Injection
    chat: _Chat
    form: Form
    sampling: _Sampling

    @field_validator("template")
    @classmethod
    def _placeholders(cls, template: str) -> str:
        check_av_template(template)
        return template

    @model_validator(mode="after")
    def _scale_is_given(self) -> "_Verbalizer":
        if self.injection.site == "embedding" and "injection_scale" not in self.model_fields_set:
            raise ValueError(
                "extraction.injection_scale: is missing; add the L2 norm that the AV was trained "
                "to find vectors at, or null if they were not scaled"
            )
        return self

    def profile(self) -> NlaProfile:
        scale = self.injection_scale
        injection = (
            ReplaceEmbedding(math.sqrt(self.d_model) if scale == "sqrt_d_model" else scale)
            if self.injection.site == "embedding"
            else AddAtBlock(self.injection.layer, self.injection.coefficient)
        )
        tagged = self.form is Form.TAGS
        return self._profile(
            VerbalizerProfile(
                injection=injection,
                template=self.template,
                slot=Slot(
                    text=self.marker,
                    token_id=self.marker_id,
                    left_id=self.left_id,
                    right_id=self.right_id,
                    count=self.count,
                ),
                enable_thinking=self.chat.enable_thinking,
                prefill=self.chat.prefill,
                form=self.form,
                sampling=Sampling(
                    **self.sampling.model_dump(),
                    stop=(_CLOSE,) if tagged else (),
                    include_stop=tagged,
                ),
            ),
            None,
        )


class _Reconstructor(_Half):
    template: str = Field(validation_alias=AliasPath("prompt_templates", "ar"))
    suffix_ids: tuple[NonNegativeInt, ...] = Field(
        (), validation_alias=AliasPath("tokens", "critic_suffix_ids")
    )
    reconstruction: _Reconstruction

    @field_validator("template")
    @classmethod
    def _placeholders(cls, template: str) -> str:
        check_ar_template(template)
        return template

    def profile(self) -> NlaProfile:
        return self._profile(
            None,
            ReconstructorProfile(
                template=self.template,
                suffix_ids=self.suffix_ids,
                special_tokens=self.reconstruction.special_tokens,
                # Where the loss was of raw rows, so was the state before the head.
                normalize_state=self.reconstruction.normalize_state and self.mse_scale is not None,
            ),
        )


def check_av_template(template: str) -> None:
    """Raises ValueError unless a template has one place for the markers, and no stray brace."""
    _check_template(template, "{injection_char}", "{question}", "{layer}")


def check_ar_template(template: str) -> None:
    """Raises ValueError unless a template has one place for the text, and no stray brace."""
    _check_template(template, "{explanation}")


def _check_template(template: str, needed: str, *optional: str) -> None:
    if template.count(needed) != 1:
        raise ValueError(f"must have {needed} once, but has it {template.count(needed)} times")
    rest = template.replace(needed, "")
    for placeholder in optional:
        rest = rest.replace(placeholder, "")
    # Whoever trains on a template formats it, and so reads braces that we would leave as they are.
    if "{" in rest or "}" in rest:
        raise ValueError("has a brace that belongs to no placeholder")


def _measured(baseline: _Baseline, width: int) -> Baseline:
    mean = None
    if baseline.mean_file is not None:
        # torch, since numpy has no bfloat16.
        with safe_open(baseline.mean_file, framework="pt") as file:
            mean = file.get_tensor("mean").float().numpy()
        if mean.shape != (width,):
            raise ValueError(f"{baseline.mean_file}: mean has shape {mean.shape}, not ({width},)")
    return Baseline(
        variance=baseline.variance,
        mean=mean,
        median_norm=baseline.median_norm,
        rows=baseline.rows,
    )


def _written(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{field}: is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    if not field:
        return message
    return f"{field}: {message}, not {error['input']!r:.100}"
