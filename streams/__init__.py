"""One stream and many: the engine that batches them, and the handle that a person drives."""
