"""The `vitrail` command: one thin sub-command per verb."""
