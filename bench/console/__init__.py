"""Terminal behaviour of commands: exit codes, progress, signals, and escaping of free text."""
