"""Generator of realistic cloud logs: behaviour models, and the users that are built from them."""
