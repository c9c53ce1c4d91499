"""Rules about what a model generates."""
