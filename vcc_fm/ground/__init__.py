"""What every room stands on: errors, whole-or-absent files, work that processes share, progress, words."""
