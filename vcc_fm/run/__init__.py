"""The run: stages in order, what they make and where, what a plan says, and how processes are launched."""
