"""Features: values of log columns as codes and numbers."""
