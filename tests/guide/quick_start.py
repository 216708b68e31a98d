# model.py
import model_hosting_container_standards.sagemaker as sagemaker_standards
from fastapi import Request, Response
import json

@sagemaker_standards.custom_ping_handler
async def my_health_check(request: Request) -> Response:
    """Custom health check logic."""
    return Response(
        content=json.dumps({"status": "healthy", "custom": True}),
        media_type="application/json",
        status_code=200
    )

@sagemaker_standards.custom_invocation_handler
async def my_inference(request: Request) -> Response:
    """Custom inference logic."""
    body = await request.json()
    # Your custom logic here
    result = {"predictions": ["custom response"]}
    return Response(
        content=json.dumps(result),
        media_type="application/json"
    )
