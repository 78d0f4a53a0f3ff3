"""What a command shows and how it ends: exit codes, progress, signals, and text that is inert in any format."""
