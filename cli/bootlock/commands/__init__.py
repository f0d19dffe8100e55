"""The commands, a module for each; ``view`` has the two that only look at holds."""
