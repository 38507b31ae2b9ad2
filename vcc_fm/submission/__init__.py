"""Submissions: the file that a challenge's platform takes, made from predictions and read again before it is shown."""
