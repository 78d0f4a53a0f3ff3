"""What judges one text: one file per scorer."""
