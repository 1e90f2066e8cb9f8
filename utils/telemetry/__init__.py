"""What a running process shows of itself: lines for people and for machines."""
