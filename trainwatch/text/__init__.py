"""The faces in words: a diagnosis on a terminal, in Markdown, in tables; and how each thing is called."""
