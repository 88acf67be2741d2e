"""The answers to a case, as people read them."""

from __future__ import annotations

LABELS = {
    "accept": "Accept",
    "roll_back": "Roll back",
    "retrain": "Retrain",
    "mute": "Mute",
    "new_normal": "New normal",
    "incident": "Mark as incident",
}
"""Answer -> its button."""
