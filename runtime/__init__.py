"""The runtime: opens an artifact and answers. Needs numpy, onnxruntime and tokenizers, nothing heavier."""
