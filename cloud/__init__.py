"""SageMaker's container contract and endpoints: `python -m cloud`."""
