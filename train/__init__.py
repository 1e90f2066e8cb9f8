"""How models are made and judged; knows nothing of Kafka."""
