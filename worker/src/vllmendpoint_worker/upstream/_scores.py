"""Requests scores as vLLM's own HTTP server does, because Dynamo's handlers do not support scores."""

import copy
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from pydantic import TypeAdapter
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest

from vllmendpoint_worker.payload.forms import Form
from vllmendpoint_worker.payload.validation import MARKERS

from ._ranks import ROUTING, RankedClient, set_request_id

__all__ = ["Scorer", "score_request"]

_SCORE: Final = TypeAdapter[Any](ScoreRequest)


def score_request(body: Mapping[str, Any]) -> Any:
    """vLLM's request for ``/rerank``, or for ``/score``. Raises ``ValidationError``."""
    if Form.QUERY.value in body:
        return RerankRequest.model_validate(dict(body))
    return _SCORE.validate_python(dict(body))


class Scorer:
    """Scores of one engine. ``serving``: vLLM's ``ServingScores``."""

    def __init__(self, serving: Any, client: Any) -> None:
        self._serving = copy.copy(serving)
        self._serving.engine_client = RankedClient(client)

    async def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """One chunk, in the form of Dynamo's pooling handlers."""
        body = {name: value for name, value in request.items() if name not in MARKERS | {ROUTING}}
        set_request_id(request_id)
        response = await self._serving(score_request(body))
        answer = json.loads(response.body)
        yield {"data": answer.get("data") or answer.get("results")}
