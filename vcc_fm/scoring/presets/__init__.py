"""What is measured, on which scale: one file each."""
