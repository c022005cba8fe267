"""Room 7: Rows -> the world."""
