"""The command line: words and options, made from the stages themselves."""
