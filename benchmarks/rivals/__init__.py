"""What morpheus is measured beside, in an environment of its own."""
