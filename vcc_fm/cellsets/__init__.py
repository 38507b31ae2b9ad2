"""What trains: stores and a split joined, and how their cells come together as sets."""
