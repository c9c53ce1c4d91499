"""Balance: what the loss components weigh against each other."""
