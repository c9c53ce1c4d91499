"""Rules about how the total loss goes: down, nowhere, back up, or not at all."""
