"""The forward model as pure functions on tensors, each operator with its adjoint."""
