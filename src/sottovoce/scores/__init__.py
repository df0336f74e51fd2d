"""From embeddings to scores, and what scores are worth."""
