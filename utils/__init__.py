"""What the scripts share: settings, messages, Kafka, features, stores."""
