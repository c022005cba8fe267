"""Would we have caught it: recorded attack techniques, injected into each user's own days."""
