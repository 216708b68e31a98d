# model.py (or the file specified in CUSTOM_SCRIPT_FILENAME)
async def custom_sagemaker_ping_handler(request):
    """Automatically discovered by name."""
    return {"status": "healthy"}

async def custom_sagemaker_invocation_handler(request):
    """Automatically discovered by name."""
    return {"result": "processed"}
