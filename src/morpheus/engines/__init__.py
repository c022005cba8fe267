"""Who runs which user where."""
