"""What is nested deeper than anybody needs is refused by name, before anything walks it."""

import json

import pytest
from pydantic import ValidationError

from vllmendpoint_api import VLLMEndpointSpec

FIELDS = {
    "engine.config.inline": lambda deep: {"engine": {"config": {"inline": deep}}},
    "healthCheck.payload": lambda deep: {"healthCheck": {"payload": deep}},
    "worker.podTemplate": lambda deep: {"worker": {"podTemplate": deep}},
    "frontend.podTemplate": lambda deep: {"frontend": {"podTemplate": deep}},
}


def nested(levels, inner="1"):
    return json.loads('{"a":' * levels + inner + "}" * levels)


@pytest.mark.parametrize("field", FIELDS)
def test_up_to_64_levels(field):
    spec = {"model": {"uri": "hf://o/n"}}
    VLLMEndpointSpec.model_validate(spec | FIELDS[field](nested(64)))
    for deep in (nested(65), nested(64, "[]"), nested(60, "[[[[[1]]]]]")):
        with pytest.raises(ValidationError) as refused:
            VLLMEndpointSpec.model_validate(spec | FIELDS[field](deep))
        (error,) = refused.value.errors()
        assert ".".join(map(str, error["loc"])) == field
        assert "nested more than 64 levels deep" in error["msg"]
