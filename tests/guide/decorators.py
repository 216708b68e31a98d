# model.py (or the file specified in CUSTOM_SCRIPT_FILENAME)
import model_hosting_container_standards.sagemaker as sagemaker_standards

@sagemaker_standards.custom_ping_handler
async def my_ping(request):
    return {"status": "ok"}

@sagemaker_standards.custom_invocation_handler
async def my_invoke(request):
    return {"result": "processed"}
