"""The serving system: plain classes that ``serve_app`` wraps as Ray Serve deployments and Ray actors."""
