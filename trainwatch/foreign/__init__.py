"""What the readers of other people's logs share: names, counters, printed lines, last words, rows."""
