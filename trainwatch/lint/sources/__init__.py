"""Where settings come from: one file for each way of writing them. Each gives places, and judges nothing."""
