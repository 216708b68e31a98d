sagemaker_client = boto3.client('sagemaker')

sagemaker_client.create_model(
    ModelName='my-vllm-model',
    ExecutionRoleArn='arn:aws:iam::123456789012:role/SageMakerExecutionRole',
    PrimaryContainer={
        'Image': f'{account_id}.dkr.ecr.{region}.amazonaws.com/vllm:latest',
        'ModelDataSource': {
            'S3DataSource': {
                'S3Uri': 's3://my-bucket/my-model/',
                'S3DataType': 'S3Prefix',
                'CompressionType': 'None',
            }
        },
        'Environment': {
            'SM_VLLM_MODEL': 'meta-llama/Meta-Llama-3-8B-Instruct',
            'HUGGING_FACE_HUB_TOKEN': 'hf_your_token_here',
            'CUSTOM_SCRIPT_FILENAME': 'model.py',  # Default: model.py
        }
    }
)
