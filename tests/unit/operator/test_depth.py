"""What is nested deeper than anybody needs is refused by name, before anything walks it."""

import json

import pytest
from pydantic import ValidationError

from vllmendpoint_api import MAX_DEPTH, VLLMEndpointSpec

FIELDS = {
    "engine.config.inline": lambda deep: {"engine": {"config": {"inline": deep}}},
    "healthCheck.payload": lambda deep: {"healthCheck": {"payload": deep}},
    "worker.podTemplate": lambda deep: {"worker": {"podTemplate": deep}},
    "frontend.podTemplate": lambda deep: {"frontend": {"podTemplate": deep}},
}


def nested(levels, inner="1"):
    return json.loads('{"a":' * levels + inner + "}" * levels)


@pytest.mark.parametrize("field", FIELDS)
def test_up_to_a_bound(field):
    spec = {"model": {"uri": "hf://o/n"}}
    VLLMEndpointSpec.model_validate(spec | FIELDS[field](nested(MAX_DEPTH)))
    for deep in (nested(MAX_DEPTH + 1), nested(MAX_DEPTH, "[]"), nested(MAX_DEPTH - 4, "[[[[[1]]]]]")):
        with pytest.raises(ValidationError) as refused:
            VLLMEndpointSpec.model_validate(spec | FIELDS[field](deep))
        (error,) = refused.value.errors()
        assert ".".join(map(str, error["loc"])) == field
        assert f"nested more than {MAX_DEPTH} levels deep" in error["msg"]
