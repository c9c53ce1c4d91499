"""Where settings come from. One file for each way of writing them; each gives a tree with places, and judges nothing."""
