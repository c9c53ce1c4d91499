"""What the trainer's command line can be asked to do: one file a command, each with `main(asked) -> exit code`."""
