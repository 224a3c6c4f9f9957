"""Optics as pure functions on tensors, each operator beside its adjoint."""
