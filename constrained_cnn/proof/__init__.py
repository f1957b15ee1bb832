"""Prove a receptive field on the running network, and measure how much of it is used."""

from constrained_cnn.proof._effective import EffectiveField, effective_receptive_field
from constrained_cnn.proof._verify import FieldCheck, FieldProof, verify_receptive_field

__all__ = [
    "EffectiveField",
    "FieldCheck",
    "FieldProof",
    "effective_receptive_field",
    "verify_receptive_field",
]
