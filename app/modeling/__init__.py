"""What is trained and served: tokenizers, networks as pure functions over Hugging Face weights, checkpoints."""
