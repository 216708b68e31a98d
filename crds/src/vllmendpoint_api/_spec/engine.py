"""``spec.model`` and ``spec.engine``."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from vllmendpoint_api._base import Contract, JsonObject
from vllmendpoint_api._health import ModelType
from vllmendpoint_api._options.rejected import (
    ENGINE_OPTIONS,
    OWNED_ENGINE_ARGS,
    SHORT_OPTIONS,
    UNSUPPORTED_ENGINE_ARGS,
)

from .common import ConfigMapKeyRef, DataKey, Name, option_rule, rules

__all__ = [
    "EngineConfig",
    "EngineSpec",
    "ModelSpec",
    "TokenKeyRef",
    "argument_rules",
]


class TokenKeyRef(Contract):
    """Key of a Secret in the endpoint's namespace."""

    name: Annotated[Name, Field(description="Name of the Secret.")]
    key: Annotated[DataKey, Field(description="Key in the Secret. Defaults to token.")] = "token"


_S3_URI: Final = "^s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/.*)?$"


class ModelSpec(Contract):
    """Model to serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.revision) || self.uri.startsWith('hf://')",
                "message": "model.revision: only a Hugging Face Hub model (hf://) has revisions; remove "
                "this field",
            },
        )
    )
    uri: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            description="Location of the model: hf://organization/name (Hugging Face Hub), "
            "s3://bucket/prefix/, pvc://claim/path (PersistentVolumeClaim in the endpoint's namespace) or "
            "file:///path (in the image). The scheme is required.",
            json_schema_extra=rules(
                {
                    "rule": "self.matches('^(hf|s3|pvc|file)://')",
                    "message": "model.uri: the scheme must be hf://, s3://, pvc:// or file://, for example "
                    "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
                },
                {
                    "rule": "!self.startsWith('hf://') || self.matches('^hf://[\\\\w.-]+/[\\\\w.-]+$')",
                    "message": "model.uri: hf:// must be followed by an organization and a name, for "
                    "example hf://HuggingFaceTB/SmolLM2-135M-Instruct",
                },
                {
                    "rule": f"!self.startsWith('s3://') || self.matches('{_S3_URI}')",
                    "message": "model.uri: s3:// must be followed by a bucket and a prefix, for example "
                    "s3://my-bucket/my-model/",
                },
                {
                    "rule": "!self.startsWith('pvc://') || "
                    "self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?$')",
                    "message": "model.uri: pvc:// must be followed by a claim name and a path, for example "
                    "pvc://models/smollm",
                },
                {
                    "rule": "!self.startsWith('file://') || self.matches('^file:///.+$')",
                    "message": "model.uri: file:// must be followed by an absolute path, for example "
                    "file:///opt/models/smollm",
                },
                {
                    "rule": "!self.contains('/../') && !self.endsWith('/..')",
                    "message": "model.uri: the path must not contain '..'",
                },
            ),
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=256,
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/]*$",
            description="Branch, tag or commit of an hf:// model. Restart the workers to pick up newer "
            "commits of a branch. Defaults to the branch main.",
        ),
    ] = None
    name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=128,
            pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/:]*$",
            description="Model name that clients send in requests. Defaults to metadata.name.",
        ),
    ] = None
    type: Annotated[
        Literal[ModelType.CHAT, ModelType.COMPLETION, ModelType.EMBEDDING] | None,
        Field(
            description="Type of the model, which selects the default health check payload. If unset, the "
            "worker detects it."
        ),
    ] = None
    token_secret_ref: Annotated[
        TokenKeyRef | None,
        Field(
            description="Secret with the access token for the Hugging Face Hub, which becomes HF_TOKEN in "
            "the worker pods. The operator does not read it. If unset, HF_TOKEN is not set."
        ),
    ] = None
    artifacts_uri: Annotated[
        str | None,
        Field(
            max_length=1024,
            description="Location of SageMaker model data, s3://bucket/prefix/. Each worker downloads it to "
            "SAGEMAKER_MODEL_PATH (default /opt/ml/model) before it loads the handlers. If unset, nothing "
            "is downloaded.",
            json_schema_extra=rules(
                {
                    "rule": f"self.matches('{_S3_URI}')",
                    "message": "model.artifactsUri: must have the form s3://bucket/prefix/, for example "
                    "s3://my-bucket/my-model/",
                },
            ),
        ),
    ] = None


_ONE_LETTER: Final = "".join(short[1] for short in SHORT_OPTIONS if len(short) == 2)
_LONG_SHORT: Final = "|".join(
    short[1:] for short, name in SHORT_OPTIONS.items() if len(short) > 2 and not ENGINE_OPTIONS[name].values
)

# The rules apply to the items and not to the list. If a message must find the item, the API server's cost
# estimate multiplies by the length of the list twice. vLLM's parser accepts an unambiguous prefix of an
# option, and a short form of one letter with an attached value.
_VALUES: Final = "|".join(
    f"{name[2:].replace('-', '[-_]')}=({'|'.join(option.values)})"
    for name, option in ENGINE_OPTIONS.items()
    if option.values
)


def argument_rules(field: str, *more: Mapping[str, str | bool]) -> Any:
    """Return the schema extension of one argument in the list ``field``. ``more``: further rules."""
    option = f"'{field}: ' + self.split('=', 2)[0] + "
    found = (
        {
            "rule": f"!{option_rule('self', OWNED_ENGINE_ARGS)}",
            "messageExpression": f"{option}' is set by the operator; remove it'",
            "message": f"{field}: this argument is set by the operator; remove it",
        },
        {
            "rule": f"!self.matches('^-([{_ONE_LETTER}]|({_LONG_SHORT})(=|$))')",
            "messageExpression": f"{option}' is the short form of an argument that the operator sets; remove "
            "it'",
            "message": f"{field}: this is the short form of an argument that the operator sets; remove it",
        },
        {
            "rule": f"!{option_rule('self', UNSUPPORTED_ENGINE_ARGS)}",
            "messageExpression": f"{option}' is not supported by the worker; remove it'",
            "message": f"{field}: this argument is not supported by the worker; remove it",
        },
        {  # the operator checks values in the next item: a rule on the list costs too much
            "rule": f"!self.matches('^--({_VALUES})$')",
            "messageExpression": f"'{field}: ' + self + ' is not supported; remove it'",
            "message": f"{field}: this value is not supported; remove it",
        },
        {
            "rule": "!self.matches('^--[A-Za-z0-9_.-]+\\\\s')",
            "messageExpression": f"'{field}: ' + self.split(' ', 2)[0] + ' and its value must be two items, "
            "or one item with = between them'",
            "message": f"{field}: an option and its value must be two items, or one item with = between them",
        },
    )
    return rules(*found, *more)


class EngineConfig(Contract):
    """Config file of the engine: vLLM's options, health_check_level and health_check_payload."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "has(self.inline) != has(self.configMapKeyRef)",
                "message": "engine.config: set exactly one of inline and configMapKeyRef",
            }
        )
    )
    inline: Annotated[JsonObject | None, Field(description="Content of the file.")] = None
    config_map_key_ref: Annotated[
        ConfigMapKeyRef | None, Field(description="Key of a ConfigMap that contains the file as YAML.")
    ] = None


class EngineSpec(Contract):
    """Options of the vLLM engine."""

    args: Annotated[
        tuple[Annotated[str, Field(max_length=4096, json_schema_extra=argument_rules("engine.args"))], ...],
        Field(
            max_length=128,
            description="Arguments of dynamo.vllm and vLLM, one token per item, used verbatim: $(NAME) and "
            "$$ are not expanded. Arguments that the operator sets, that the worker does not support, or "
            "that do not affect status.url while frontend.mode is Managed are rejected. Defaults to none.",
        ),
    ] = ()
    config: Annotated[
        EngineConfig | None,
        Field(
            description="Config file of the engine (config.yaml). The same option with another value in "
            "args is an error. If unset, there is no file."
        ),
    ] = None
