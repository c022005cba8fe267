"""Life-like logs of a cloud account: models of behaviour, and the users made of them."""
