DEFAULT_CURRICULUM = [
    {"name": "clean", "start": 0, "end": 8000, "precursor_loss_weight": 0.0},
    {"name": "mass", "start": 8000, "end": 30000, "precursor_loss_weight": 0.2},
    {"name": "hard", "start": 30000, "end": 100000, "precursor_loss_weight": 1.0},
]
EXTENDED_CURRICULUM = [
    {"name": "clean", "start": 0, "end": 30000, "precursor_loss_weight": 0.0},
    {"name": "mass", "start": 30000, "end": 100000, "precursor_loss_weight": 0.08},
]
