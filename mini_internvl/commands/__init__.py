"""What the longer commands do: they join the pieces and print. One file per command, named after it."""
