"""The toy world, its data, and the training of the model that ships."""
