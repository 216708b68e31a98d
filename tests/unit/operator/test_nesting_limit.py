"""Free-form fields with too many levels are invalid; the error names the field."""

import json

import pytest
from pydantic import ValidationError

from vllmendpoint_api import MAX_DEPTH, VLLMEndpointSpec

FIELDS = {
    "engine.config.inline": lambda value: {"engine": {"config": {"inline": value}}},
    "healthCheck.payload": lambda value: {"healthCheck": {"payload": value}},
    "worker.podTemplate": lambda value: {"worker": {"podTemplate": value}},
    "frontend.podTemplate": lambda value: {"frontend": {"podTemplate": value}},
}


def nested(levels, inner="1"):
    return json.loads('{"a":' * levels + inner + "}" * levels)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_with_more_than_the_maximum_number_of_levels_is_invalid(field):
    spec = {"model": {"uri": "hf://o/n"}}
    VLLMEndpointSpec.model_validate(spec | FIELDS[field](nested(MAX_DEPTH)))
    for value in (nested(MAX_DEPTH + 1), nested(MAX_DEPTH, "[]"), nested(MAX_DEPTH - 4, "[[[[[1]]]]]")):
        with pytest.raises(ValidationError) as caught:
            VLLMEndpointSpec.model_validate(spec | FIELDS[field](value))
        (error,) = caught.value.errors()
        assert ".".join(map(str, error["loc"])) == field
        assert f"nested more than {MAX_DEPTH} levels deep" in error["msg"]
