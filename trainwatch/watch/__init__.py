"""The live face in the terminal: what it shows, which keys it answers, and the loop that follows the runs."""
