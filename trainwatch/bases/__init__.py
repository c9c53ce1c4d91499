"""What rules of one kind have in common: what they gather, row by row, before they judge it."""
