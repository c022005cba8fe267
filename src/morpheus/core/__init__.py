"""What every part agrees on: stages, batches, state, options."""
