"""Detection, measured beside rivals on logs whose incidents are known."""
