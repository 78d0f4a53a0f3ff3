"""Steering methods: a small library that works in a notebook without `bench` or Hydra."""
