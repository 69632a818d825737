"""Models, one file per `model_type`; each shows only what differs."""
